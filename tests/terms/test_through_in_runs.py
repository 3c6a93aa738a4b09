"""CrossKD in real runs: resumed, with other terms, in two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from tests import ddp, stock_models
from tests.runs import Record, assert_same, config, needs_ops, save_weights, train
from tests.stock_models import cwd

pytestmark = [needs_ops, pytest.mark.usefixtures('own_globals')]


def settings(data: Path, tmp_path: Path, name: str, length: int, **changes) -> Config:
    """CrossKD with a weight that finds itself, beside a term on the neck."""
    branches = [f'bbox_head.{branch}_convs.0.activate@input' for branch in ('cls', 'reg')]
    loss = dict(type='mmkd_plugin.CrossHeadLoss', boxes='decoded', loss_weight='auto')
    crosskd = dict(
        student_tap=branches,
        through=branches,
        teacher_tap=['bbox_head.retina_cls', 'bbox_head.retina_reg'],
        loss=loss,
    )
    teacher = stock_models.retinanet(16, classes=3)
    model = dict(
        _scope_='mmdet',
        type='mmkd_plugin.Distiller',
        student=stock_models.retinanet(8, classes=3),
        teacher=dict(config=teacher, checkpoint=save_weights(teacher, tmp_path / 'teacher.pth')),
        distill=dict(crosskd=crosskd, cwd=dict(tap='neck', loss=cwd(), schedule=dict(start=1))),
    )
    return config(model, data, tmp_path / name, length, **changes)


def test_a_resumed_run_is_the_run_that_never_ended(data, tmp_path):
    first, second = Record(), Record()
    whole = train(settings(data, tmp_path, 'whole', 4, save_every=2), first)
    half = str(tmp_path / 'whole' / 'iter_2.pth')
    rest = train(settings(data, tmp_path, 'rest', 4, load_from=half, resume=True), second)
    assert_same(second.losses, first.losses[2:])
    assert_same(dict(rest.model.named_parameters()), dict(whole.model.named_parameters()))
    saved = torch.load(half, weights_only=False)['state_dict']
    assert set(saved) == set(stock_models.build(stock_models.retinanet(8, classes=3)).state_dict())


def test_two_processes(data, tmp_path):
    """All processes have one student, one weight, and a teacher that stays as it was."""
    cfg = settings(data, tmp_path, 'ddp', 3, randomness=dict(seed=0, diff_rank_seed=True))
    ddp.in_two_processes(ddp.train_and_note, cfg)
    first, second = (
        torch.load(tmp_path / 'ddp' / f'rank{rank}.pt', weights_only=False) for rank in (0, 1)
    )
    assert not torch.equal(first['inputs'][0][0], second['inputs'][0][0])
    assert_same(first['parameters'], second['parameters'])
    assert_same(first['teacher'], second['teacher'])
    assert not any('teacher' in name for name in first['exchanged'])
    assert all(x['distill.crosskd.loss'] > 0 for x in first['losses'])
