"""Each family of models from build to export: trained, resumed, asked, and loaded without us."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner
from torch.utils.data import Dataset

from mmkd_plugin.checkpoint import read_checkpoint
from mmkd_plugin.running.hook import make_resumable
from mmkd_plugin.taps.example import example_batch
from tests import stock_models as stock
from tests.runs import assert_same, needs_ops
from tests.stock_models import build, cwd
from tests.tools.tool_runs import load_tool

pytestmark = pytest.mark.usefixtures('own_globals')

SCORES, NECK = dict(tap='decode_head.conv_seg'), dict(tap='neck')
MASKS = dict(tap='panoptic_head.pixel_decoder.mask_feature')
SEGMENTOR_MASKS = dict(tap='decode_head.pixel_decoder.mask_feature')


def panoptic(width: int = 8) -> dict:
    model = stock.mask2former(width, stuff=2)
    model['test_cfg'].update(panoptic_on=True, instance_on=False)
    return model


#: Student, and where it is compared with a wider model of its kind.
FAMILIES: dict[str, tuple[Callable[..., dict], dict]] = {
    'RetinaNet': (stock.retinanet, NECK),
    'FCOS': (stock.fcos, NECK),
    'ATSS': (stock.atss, NECK),
    'GFL': (stock.gfl, NECK),
    'Faster R-CNN': (stock.faster_rcnn, NECK),
    'Mask R-CNN': (stock.mask_rcnn, NECK),
    'Cascade R-CNN': (stock.cascade_rcnn, NECK),
    'RTMDet': (stock.rtmdet, NECK),
    'YOLOX': (stock.yolox, NECK),
    'DETR': (stock.detr, NECK),
    'Deformable DETR': (stock.deformable_detr, NECK),
    'DAB-DETR': (stock.dab_detr, NECK),
    'DINO': (stock.dino, NECK),
    'Mask2Former, instances': (stock.mask2former, MASKS),
    'Mask2Former, panoptic': (panoptic, MASKS),
    'Mask2Former, semantic': (stock.mask2former_segmentor, SEGMENTOR_MASKS),
    'SegFormer': (stock.segformer, SCORES),
    'UPerNet, Swin': (stock.upernet_swin, SCORES),
    'SegNeXt': (stock.segnext, SCORES),
    'STDC': (stock.stdc, SCORES),
    'BiSeNetV2': (stock.bisenetv2, SCORES),
    'PIDNet': (stock.pidnet, SCORES),
    'DDRNet': (stock.ddrnet, SCORES),
}


class MadeUp(Dataset):
    """Four images with the labels that a model is trained with."""

    metainfo: ClassVar[dict[str, Any]] = {}

    def __init__(self, model: dict) -> None:
        torch.manual_seed(0)
        masks = 'mask_head' in model.get('roi_head', {}) or 'panoptic_head' in model
        _, (self.sample,) = example_batch(build(model), torch.device('cpu'), masks=masks)
        side = self.sample.metainfo['img_shape'][0]
        self.images = torch.randint(256, (4, 3, side, side), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(inputs=self.images[index], data_samples=self.sample.clone())


def run(model: dict, dataset: Dataset, work_dir: Path, **changes: Any) -> Runner:
    """Trains for two iterations, saving each."""
    with mock.patch('mmengine.runner.runner.collect_env', dict):  # asks a compiler each time
        runner = Runner(
            default_scope=model['_scope_'],
            model=ConfigDict(model),
            work_dir=str(work_dir),
            experiment_name=f'{work_dir.parent.name}-{work_dir.name}',
            randomness=dict(seed=0),
            train_dataloader=dict(
                batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler'), dataset=dataset
            ),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=2),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-4)),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False)),
            log_processor=dict(by_epoch=False),
            log_level='ERROR',
            cfg=dict(),
            **changes,
        )
    make_resumable(runner)
    runner.train()
    return runner


def save_weights(config: dict, path: Path) -> None:
    """Saves weights of a model, because some of DINO's are memory as it is found until they are."""
    torch.manual_seed(1)
    model = build(config)
    for parameter in model.parameters():
        parameter.data.nan_to_num_(0, 0, 0).clamp_(-1, 1)
    torch.save(dict(state_dict=model.state_dict()), path)


@needs_ops
@pytest.mark.parametrize('family', FAMILIES)
def test_from_build_to_export(family, tmp_path, monkeypatch):
    make, taps = FAMILIES[family]
    student, teacher = make(), make(32)
    keep_all(student['test_cfg'])
    checkpoint = tmp_path / 'teacher.pth'
    save_weights(teacher, checkpoint)
    model = dict(
        _scope_=student['_scope_'],
        type='mmkd_plugin.Distiller',
        student=student,
        teacher=dict(config=teacher, checkpoint=str(checkpoint)),
        distill=dict(cwd=dict(**taps, loss=cwd(loss_weight='auto'))),
    )
    images = MadeUp(student)

    whole = run(model, images, tmp_path / 'whole')
    run(model, images, tmp_path / 'rest', load_from=str(tmp_path / 'whole/iter_1.pth'), resume=True)
    saved, again = (read_checkpoint(tmp_path / f'{name}/iter_2.pth') for name in ('whole', 'rest'))
    for part in ('state_dict', 'optimizer'):
        assert_same(dict(again[part]), dict(saved[part]))
    first = read_checkpoint(tmp_path / 'whole/iter_1.pth')['state_dict']
    learns = [name for name, _ in whole.model.student.named_parameters()]
    assert any(not torch.equal(first[name], saved['state_dict'][name]) for name in learns)

    config, out = tmp_path / 'config.py', tmp_path / 'student.pth'
    Config(dict(default_scope=student['_scope_'], model=model)).dump(config)
    monkeypatch.setattr(
        sys, 'argv', ['export', *map(str, (config, tmp_path / 'whole/iter_2.pth', out))]
    )
    load_tool('export_student').main()
    alone = build(student)
    alone.load_state_dict(torch.load(out, weights_only=True)['state_dict'])
    batch = dict(inputs=[images[0]['inputs']], data_samples=[images[0]['data_samples']])
    ours, theirs = (asked(one, batch, student) for one in (whole.model, alone))
    assert_same(ours, theirs)


def asked(model: torch.nn.Module, batch: dict, student: dict) -> list[torch.Tensor]:
    """What a model predicts of an image: a label map, or boxes with scores, and masks if any."""
    torch.manual_seed(0)
    model.eval()
    with torch.no_grad():
        copied = dict(inputs=batch['inputs'], data_samples=[batch['data_samples'][0].clone()])
        (found,) = model.test_step(copied)
    if student['_scope_'] == 'mmseg':
        return [found.pred_sem_seg.data]
    if 'pred_panoptic_seg' in found:
        return [torch.as_tensor(found.pred_panoptic_seg.sem_seg)]
    boxes = found.pred_instances
    assert len(boxes), 'an empty prediction shows nothing'
    masks = [torch.as_tensor(boxes.masks)] if 'masks' in boxes else []
    return [boxes.bboxes, boxes.scores, *masks]


def keep_all(config: dict) -> None:
    """Lets a detector that has hardly trained report what it is not sure of."""
    for part in (config, config.get('rcnn', {})):
        if 'score_thr' in part:
            part['score_thr'] = 0.0
