"""Real test runs of small models on tiny data, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.runner import Runner

from tests import stock_models
from tests.runs import config, save_weights


class Keep(BaseMetric):
    """Keeps what the model was fed and what it predicted."""

    default_prefix = 'keep'

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Any] = []

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        self.batches.append(data_batch)
        self.results += data_samples

    def compute_metrics(self, results: list[dict]) -> dict:
        self.kept = results
        return {}


def segmentor(**preprocessor: Any) -> dict:
    return stock_models.pspnet(classes=3, **preprocessor)


def detector(**preprocessor: Any) -> dict:
    model = stock_models.retinanet(classes=2)
    model['test_cfg'].update(score_thr=0.0, max_per_img=20)
    model['data_preprocessor'].update(preprocessor)
    return model


def weighted(model: dict, folder: Path, seed: int = 7) -> dict:
    """A model with random weights, as the ``teacher`` of a config."""
    return dict(config=model, checkpoint=save_weights(model, folder / f'{seed}.pth', seed))


def config_of(model: dict, data: Path, work_dir: Path, *metrics: dict, **dataset: Any) -> Config:
    """A config that tests a model of :func:`weighted`, two images of 48 pixels at a time."""
    cfg = config(model['config'], data, work_dir, 1)
    cfg.load_from = model['checkpoint']
    loader = cfg.train_dataloader
    pipeline = loader.dataset.pipeline
    pipeline.insert(1, dict(type='Resize', scale=(48, 48), keep_ratio=True))
    if cfg.default_scope == 'mmdet':
        loader.dataset.test_mode = True
        pack = dict(meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
        pipeline[-1].update(pack)
    loader.dataset.update(dataset)
    loader.sampler = dict(type='DefaultSampler', shuffle=False)
    cfg.test_dataloader, cfg.test_cfg = loader, dict(type='TestLoop')
    cfg.test_evaluator = list(metrics)
    cfg.custom_hooks = [dict(type='mmkd_plugin.ModelForMetrics')]
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler'):
        cfg.pop(key)
    return cfg


def run_test(
    model: dict, data: Path, work_dir: Path, *metrics: dict, **dataset: Any
) -> tuple[dict[str, float], Keep]:
    """Returns the numbers of the metrics, and what the model was fed and predicted."""
    keep = Keep()
    runner = Runner.from_cfg(config_of(model, data, work_dir, *metrics, **dataset))
    runner.test_evaluator.metrics.append(keep)
    return runner.test(), keep
