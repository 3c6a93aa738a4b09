"""Automatic weights in real runs: resumed, accumulated, in two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from tests import ddp, stock_models
from tests.runs import Record, assert_same, config, save_weights, train

pytestmark = pytest.mark.usefixtures('own_globals')

TERMS = dict(
    cwd=dict(
        tap='decode_head.conv_seg',
        loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=4, loss_weight='auto'),
        schedule=dict(start=1, ramp=2),
    ),
    hint=dict(
        tap=['backbone.layer3', 'backbone.layer4'],
        loss=dict(type='mmkd_plugin.HintLoss', loss_weight=dict(auto=0.1)),
    ),
)


def model(folder: Path) -> dict:
    teacher = stock_models.fcn(16, classes=3)
    return dict(
        _scope_='mmseg',
        type='mmkd_plugin.Distiller',
        student=stock_models.fcn(8, classes=3),
        teacher=dict(config=teacher, checkpoint=save_weights(teacher, folder / 'teacher.pth')),
        distill=TERMS,
    )


def weights(found: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: getattr(found, name) for name in ('weight', 'task', 'term', 'measured')}


def test_a_resumed_run_has_the_same_weights_bit_for_bit(data, tmp_path):
    settings = dict(save_every=3)
    whole = train(
        config(model(tmp_path), data, tmp_path / 'whole', 6, **settings), first := Record()
    )
    half = str(tmp_path / 'whole' / 'iter_3.pth')
    rest = train(
        config(
            model(tmp_path), data, tmp_path / 'rest', 6, **settings, load_from=half, resume=True
        ),
        second := Record(),
    )
    assert_same(second.losses, first.losses[3:])
    for name in TERMS:
        ours, theirs = (run.model.distill[name].auto for run in (rest, whole))
        assert ours.steps == theirs.steps == (4 if name == 'cwd' else 6)
        assert_same(weights(ours), weights(theirs))
    assert_same(dict(rest.model.named_parameters()), dict(whole.model.named_parameters()))


def test_accumulated_steps_measure_as_others_do(data, tmp_path):
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.0))
    found = []
    for name, counts in (('plain', 1), ('accumulated', 2)):
        cfg = config(
            model(tmp_path), data, tmp_path / name, 4,
            optim_wrapper=dict(wrapper, accumulative_counts=counts),
        )  # fmt: skip
        found.append(train(cfg).model.distill['hint'].auto.weight)
    torch.testing.assert_close(*found)


def train_and_note(rank: int, cfg: Config) -> None:
    record = Record()
    distiller = train(cfg, record).model.module
    found = {name: weights(distiller.distill[name].auto) for name in TERMS}
    torch.save(dict(found=found, inputs=record.inputs), Path(cfg.work_dir, f'rank{rank}.pt'))


def test_two_processes_find_one_weight_from_both_batches(data, tmp_path):
    cfg = config(model(tmp_path), data, tmp_path, 4, randomness=dict(seed=0, diff_rank_seed=True))
    ddp.in_two_processes(train_and_note, cfg)
    first, second = (torch.load(tmp_path / f'rank{rank}.pt') for rank in (0, 1))
    assert not torch.equal(first['inputs'][0][0], second['inputs'][0][0])
    assert_same(first['found'], second['found'])
    assert all((one['weight'] > 0).all() for one in first['found'].values())
