"""Losses that need the student's assigner, in a Distiller and in runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmkd_plugin.registry import MODELS
from mmkd_plugin.terms import Term
from tests import stock_models
from tests.assigners.test_heads import HEADS, config_of, padded_batch
from tests.ddp import in_two_processes
from tests.runs import config, make_data, needs_ops, train
from tests.stock_models import distiller

pytestmark = [pytest.mark.usefixtures('counters'), needs_ops]
TAPS = ['bbox_head[0]', 'bbox_head[1]']


@MODELS.register_module()
class NotesAssigned(nn.Module):
    """A loss on any maps that notes what it was given."""

    needs = ('assigned',)

    def __init__(self) -> None:
        super().__init__()
        self.given = []

    def forward(self, student, teacher, assigned):
        self.given.append(assigned)
        return sum((s - t).square().mean() for s, t in zip(student, teacher))


def line(name: str = 'ProtocolLoss', tap=TAPS, **changes) -> dict:
    return dict(tap=tap, loss=dict(type=f'mmkd_plugin.{name}', **changes))


def model_of(head: str, term: dict, **changes) -> nn.Module:
    return distiller(config_of(head), config_of(head, 16), dict(t=term), **changes).train()


@pytest.mark.parametrize('head', HEADS)
def test_heads_learn_from_what_their_assigner_found_once(head):
    model = model_of(head, line())
    calls = []
    assign = model.student.bbox_head._get_targets_single
    model.student.bbox_head._get_targets_single = lambda *a, **k: calls.append(0) or assign(*a, **k)
    losses = model(*padded_batch(model), mode='loss')
    assert len(calls) == 2  # images
    loss = losses['distill.t.loss']
    reached = torch.autograd.grad(
        loss, [*model.student.backbone.layer4.parameters()], allow_unused=True
    )
    assert loss > 0 and loss.isfinite() and all(x.isfinite().all() and x.any() for x in reached)


@pytest.mark.parametrize('name', ['ProtocolLoss', 'BoxDistributionLoss'])
@pytest.mark.parametrize('amp', [False, True])
def test_gfl_with_and_without_amp(name, amp):
    model = model_of('gfl', line(name, 'bbox_head'))
    inputs, samples = padded_batch(model)
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        losses = model(inputs, samples, mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    assert losses['distill.t.loss'].dtype == torch.float32 and losses['distill.t.loss'] > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('name', ['ProtocolLoss', 'BoxDistributionLoss'])
def test_batches_without_any_object_cost_nothing(name):
    model = model_of('gfl', line(name, 'bbox_head'))
    inputs, samples = padded_batch(model)
    samples = [samples[0], samples[0].clone()]
    losses = model(inputs, samples, mode='loss')
    model.parse_losses(losses)[0].backward()
    assert losses['distill.t.loss'] == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_assigner_works_while_the_task_loss_is_off():
    model = model_of('gfl', line(), task=dict(loss_weight=0))
    expected = model_of('gfl', line())
    losses, both = (m(*padded_batch(m), mode='loss') for m in (model, expected))
    assert set(losses) == {'distill.t.loss'} and len(both) > 1
    torch.testing.assert_close(losses['distill.t.loss'], both['distill.t.loss'])


def test_an_automatic_weight(counters):
    model = model_of('retinanet', line(loss_weight='auto'))
    losses = model(*padded_batch(model), mode='loss')
    share = counters.get_scalar('train/distill.t.share').current()
    assert losses['distill.t.loss'] > 0 and share == pytest.approx(2.5, rel=0.05)


def test_other_taps_get_what_the_only_head_found():
    model = model_of('fcos', dict(tap='neck', loss=dict(type='NotesAssigned')))
    model(*padded_batch(model), mode='loss')
    assert sum(found.shape[1] for found in model.distill.t.loss.given[-1].labels) == 512


# Mistakes -----------------------------------------------------------------------------------------


def test_a_head_without_distributions():
    words = r'expected one box for each position, .*; the head gives 1 with 4 numbers each'
    with pytest.raises(ValueError, match=words):
        model_of('retinanet', line('BoxDistributionLoss', 'bbox_head'))


def test_maps_of_three_kinds():
    with pytest.raises(
        ValueError, match=r"got 15 maps; tap both .*: tap=\['bbox_head\[0\]', 'bbox_h"
    ):
        model_of('fcos', line(tap='bbox_head'))


def test_a_segmentor():
    student = stock_models.fcn()
    words = r"distill\.t: ProtocolLoss needs what .*; FCNHead \('decode_head'\) of the student does"
    with pytest.raises(ValueError, match=words):
        distiller(student, student, dict(t=line(tap='decode_head.conv_seg')))


def test_heads_that_differ_are_not_converted():
    student, teacher = config_of('gfl'), config_of('gfl', 16)
    teacher['bbox_head']['reg_max'] = 8
    with pytest.raises(
        ValueError, match=r'channel counts differ: .* take a teacher with a head of'
    ):
        distiller(student, teacher, dict(t=line()))


def test_a_connector_is_refused_and_class_scores_are_arranged():
    term = dict(line(), connector=dict(type='mmkd_plugin.ConvConnector'))
    with pytest.raises(ValueError, match=r'distill\.t: ProtocolLoss compares what the heads give'):
        Term.from_config('t', term, ['teacher'])
    assert Term.from_config('t', line(), ['teacher']).compared is not None


def test_maps_of_a_cache_are_refused():
    term = Term.from_config('t', line(), ['teacher'])
    words = r'distill\.t: ProtocolLoss .* Train this one with the teacher itself'
    with pytest.raises(ValueError, match=words):
        term.check_stored()
    Term.from_config(
        't', dict(tap='neck', loss=dict(type='NotesAssigned')), ['teacher']
    ).check_stored()


# Two processes ------------------------------------------------------------------------------------


def train_and_save(rank: int, cfg: Config) -> None:
    given = train(cfg).model.module.distill.t.loss.given[-2:]
    saved = [(one.n_pos, sum(one.positive(i).sum() for i in range(5))) for one in given]
    torch.save(saved, Path(cfg.work_dir, f'{rank}.pt'))


def test_positives_are_averaged_over_processes(tmp_path):
    (tmp_path / 'data').mkdir()
    make_data(tmp_path / 'data')
    student = stock_models.gfl(classes=2)
    model = dict(
        _scope_='mmdet',
        type='mmkd_plugin.Distiller',
        student=student,
        teacher=dict(config=stock_models.gfl(16, classes=2), checkpoint=None),
        distill=dict(t=dict(tap='bbox_head', loss=dict(type='NotesAssigned'))),
    )
    in_two_processes(train_and_save, config(model, tmp_path / 'data', tmp_path, 2))
    first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in (0, 1))
    for (count, ours), (same, theirs) in zip(first, second):
        assert count == same == (ours + theirs) / 2
    assert any(ours != theirs for (_, ours), (_, theirs) in zip(first, second))
