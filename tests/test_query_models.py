"""Detectors with queries and masks, and detectors that teach segmentors."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.optim import OptimWrapper

from tests import stock_models
from tests.runs import needs_ops
from tests.stock_models import batch, build, cwd, distiller

pytestmark = needs_ops


@pytest.mark.parametrize(
    ('student', 'teacher', 'tap', 'maps'),
    [
        ('detr', 'detr', 'neck', 1),
        ('detr', 'detr', 'backbone', 1),
        ('dino', 'dino', 'backbone', 2),
        ('dino', 'retinanet', ('backbone[1]', 'backbone[3]'), 1),
        ('mask2former', 'mask2former', 'backbone', 4),
        ('mask2former', 'mask_rcnn', 'backbone', 4),
        ('retinanet', 'dino', ('neck[1]', 'neck[0]'), 1),
        ('faster_rcnn', 'mask2former', 'backbone', 4),
        ('mask_rcnn', 'mask_rcnn', 'neck', 5),
        ('fcn', 'retinanet', 'backbone', 4),
        ('fcn', 'detr', ('backbone[3]', 'neck[0]'), 1),
        ('pspnet', 'mask2former', 'backbone[3]', 1),
    ],
)
def test_one_step(student, teacher, tap, maps):
    student_tap, teacher_tap = (tap, tap) if isinstance(tap, str) else tap
    taps = dict(student_tap=student_tap, teacher_tap=teacher_tap)
    distill = dict(cwd=dict(loss=cwd(), **taps))
    model = distiller(
        getattr(stock_models, student)(), getattr(stock_models, teacher)(16), distill
    ).train()
    assert len(model.distill.cwd.connectors) == maps
    frozen = model.teachers['teacher'].model
    for part in (model, frozen):  # DINO's `level_embed` is raw memory until then, at times NaN
        part.init_weights()
    before = copy.deepcopy(frozen.state_dict())
    later = [name for name, _ in frozen.named_children() if 'head' in name or 'coder' in name]
    assert later
    for name in later:
        getattr(frozen, name).register_forward_hook(lambda *_: pytest.fail('it ran to the end'))
    weights = {name: value.clone() for name, value in model.named_parameters()}
    losses = model(*batch(model), mode='loss')
    loss, log = model.parse_losses(losses)
    OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-4)).update_params(loss)
    assert log['distill.cwd.loss'] > 0 and torch.isfinite(loss)
    assert set(losses) - {'distill.cwd.loss'}, 'the student has losses of its own'
    changed = [name for name, value in model.named_parameters() if (value != weights[name]).any()]
    assert any(name.startswith('backbone.layer4') for name in changed)
    assert any(name.startswith('distill.') for name in changed)
    for key, value in frozen.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_teacher_of_more_queries_than_a_made_up_image_has_positions_shows_its_features():
    teacher = stock_models.dino()
    teacher['num_queries'] = 5000
    taps = dict(student_tap='neck[1]', teacher_tap='neck[0]')
    model = distiller(stock_models.retinanet(), teacher, dict(cwd=dict(loss=cwd(), **taps)))
    assert model.train()(*batch(model), mode='loss')['distill.cwd.loss'].isfinite()


@pytest.mark.parametrize('name', ['detr', 'dino', 'mask2former'])
def test_the_student_predicts_and_saves_as_it_would_alone(name):
    config = getattr(stock_models, name)()
    model = distiller(
        config, getattr(stock_models, name)(16), dict(cwd=dict(tap='backbone', loss=cwd()))
    )
    model.init_weights()
    alone = build(config).eval()
    alone.load_state_dict(model.state_dict(), strict=True)
    inputs, samples = batch(model, 1)
    got = model.eval()(inputs, copy.deepcopy(samples), mode='predict')[0].pred_instances
    expected = alone(inputs, samples, mode='predict')[0].pred_instances
    assert torch.equal(got.scores, expected.scores)
    assert torch.equal(got.bboxes, expected.bboxes)


def test_what_queries_do_inside_is_refused_with_a_reason():
    for tap, message in (
        ('encoder', r'ChannelWiseLoss cannot compare .* \(1, 16, 16\) and \(1, 16, 32\)'),
        ('bbox_head', r"nothing can be read there.*Inside it these run: .*bbox_head.fc_reg"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            distiller(
                stock_models.detr(), stock_models.detr(16), dict(cwd=dict(tap=tap, loss=cwd()))
            )
