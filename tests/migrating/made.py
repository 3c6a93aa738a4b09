"""Tiny models as config files, and a step of what is written on them."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from tests.stock_models import batch
from tests.tools.tool_runs import load_tool

TOOL = load_tool('from_mmrazor')

#: A run around a model, as far as a converter looks at it.
RUN = dict(
    optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4)),
    param_scheduler=[dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=100)],
    train_cfg=dict(max_iters=100),
    train_dataloader=dict(batch_size=2, num_workers=2),
)


def model_file(folder: Path, name: str, model: dict) -> str:
    """Writes the config of a model; returns its path."""
    Config(dict(default_scope=model['_scope_'], model=model, **RUN)).dump(folder / f'{name}.py')
    return str(folder / f'{name}.py')


def step(text: str, folder: Path) -> dict[str, torch.Tensor]:
    """Builds the model of a written config, without the weights of its teacher; logs of a step."""
    (folder / 'ours.py').write_text(text)
    cfg = Config.fromfile(folder / 'ours.py')
    cfg.model.teacher.checkpoint = None
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    images, samples = batch(model)
    for sample in samples:
        if 'gt_instances' in sample:  # RTMDet takes masks as tensors, where there are any
            sample.gt_instances.pop('masks', None)
    loss, logs = model.parse_losses(model.train()(images, samples, mode='loss'))
    loss.backward()
    for name in cfg.model.distill:
        assert 0 < logs[f'distill.{name}.loss'] < float('inf'), name
    return logs
