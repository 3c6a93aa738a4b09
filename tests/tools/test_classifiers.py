"""A classifier of mmpretrain through the tools: RKD, KD and FRSKD, trained, resumed and tested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmkd_plugin.checkpoint import read_checkpoint, state_dict_of
from tests.tools.tool_runs import save_random_weights

pytest.importorskip('mmpretrain', reason='mmpretrain needs torchvision, an option of the user')
pytestmark = pytest.mark.usefixtures('own_globals')

CLASSES = ('box', 'disc', 'dot')

STUDENT = """
_base_ = ['mmpretrain::resnet/resnet18_8xb16_cifar10.py']

model = dict(
    backbone=dict(base_channels=8, stem_channels=8),
    head=dict(num_classes=3, in_channels=64))
data_preprocessor = dict(num_classes=3)
dataset = dict(_delete_=True, type='CustomDataset', data_root={root!r},
               pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])
loader = dict(batch_size=3, num_workers=0, persistent_workers=False, dataset=dataset)
train_dataloader = loader
val_dataloader = loader
test_dataloader = loader
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
default_hooks = dict(logger=dict(interval=1))
"""

TEACHER = """
_base_ = ['student.py']

model = dict(
    backbone=dict(base_channels=16, stem_channels=16),
    head=dict(in_channels=128))
"""

DISTILLED = """
_base_ = ['student.py']

stages = ['backbone.layer1', 'backbone.layer2', 'backbone.layer3', 'backbone.layer4']
model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{{{_base_.model}}}},
    teacher=[
        dict(name='large', config={teacher!r}, checkpoint={weights!r}),
        dict(
            name='own',
            type='mmkd_plugin.SelfTeacher',
            tap=stages,
            neck=dict(type='mmkd_plugin.BiFPNSelfTeacher'))],
    distill=dict(
        kd=dict(
            teacher='large',
            tap='head.fc',
            loss=dict(type='mmkd_plugin.SoftTargetLoss', tau=4)),
        rkd=dict(
            teacher='large',
            tap='neck[-1]',
            loss=dict(type='mmkd_plugin.RKDDistanceLoss', loss_weight='auto')),
        features=dict(
            teacher='own',
            student_tap=stages,
            teacher_tap='backbone',
            loss=dict(type='mmkd_plugin.AttentionLoss', loss_weight=100)),
        logits=dict(
            teacher='own',
            tap='head.fc',
            loss=dict(type='mmkd_plugin.SoftTargetLoss', tau=4, loss_weight=2))))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (tmp_path / 'images' / name).mkdir(parents=True)
        for image in range(2):
            pixels = rng.integers(0, 100, (32, 32, 3), dtype=np.uint8)
            pixels[8:24, 8:24, number] += 150
            cv2.imwrite(str(tmp_path / f'images/{name}/{image}.png'), pixels)
    student, teacher, weights = (tmp_path / n for n in ('student.py', 'teacher.py', 'teacher.pth'))
    student.write_text(STUDENT.format(root=str(tmp_path / 'images')))
    teacher.write_text(TEACHER)
    save_random_weights(teacher, weights)
    (tmp_path / 'distilled.py').write_text(
        DISTILLED.format(teacher=str(teacher), weights=str(weights))
    )
    return tmp_path


def test_from_training_to_a_score(folder: Path, call_tool: Callable[..., str]) -> None:
    work = folder / 'work'
    log = call_tool('train', folder / 'distilled.py', '--work-dir', work)
    for name in ('own.loss', *(f'distill.{x}.loss' for x in ('kd', 'rkd', 'features', 'logits'))):
        assert f'{name}: ' in log
    longer = ['--cfg-options', 'train_cfg.max_epochs=2']
    log = call_tool('train', folder / 'distilled.py', '--work-dir', work, '--resume', *longer)
    assert 'resumed epoch: 1, iter: 2' in log and 'Epoch(train) [2][2/2]' in log
    call_tool('export_student', folder / 'distilled.py', work / 'epoch_2.pth', folder / 'plain.pth')
    weights = state_dict_of(read_checkpoint(folder / 'plain.pth'))
    assert {key.split('.')[0] for key in weights} == {'backbone', 'head'}
    found = [
        call_tool('test', folder / 'student.py', file, '--work-dir', folder / 'test')
        for file in (work / 'epoch_2.pth', folder / 'plain.pth')
    ]
    scores = [text.rpartition('accuracy/top1: ')[2].split()[0] for text in found]
    assert scores[0] == scores[1]
