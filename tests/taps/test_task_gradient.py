"""Losses on gradients of the task loss: both models, double backward, half precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmkd_plugin.taps.task_gradient import once_only, task_gradients, twice_differentiable
from tests import stock_models
from tests.runs import needs_ops
from tests.stock_models import batch, build, distiller

GRADIENT = dict(type='mmkd_plugin.GradientAttentionLoss')


def by_hand(model, tap, inputs, samples, graph=False):
    """The gradient at the output of a module, by a hook of its own; the model is left alone."""
    kept = []
    module = model.get_submodule(tap)
    handle = module.register_forward_hook(lambda _, __, out: kept.append(out.requires_grad_()))
    with torch.enable_grad():
        loss = model.parse_losses(model(inputs, samples, mode='loss'))[0]
    handle.remove()
    return torch.autograd.grad(loss, kept, create_graph=graph)


@pytest.mark.parametrize(
    'tap', ['decode_head.conv_seg', 'backbone.layer4', 'decode_head.bottleneck']
)
def test_the_gap_between_the_gradients_of_both_models(tap):
    model = distiller(
        stock_models.pspnet(), stock_models.pspnet(), dict(g=dict(tap=tap, loss=GRADIENT))
    )
    model.eval()  # batch norms in one mode, so that the forwards can be repeated
    inputs, samples = batch(model)
    losses = model(inputs, samples, mode='loss')
    teacher = model.teachers['teacher'].model
    (ours,) = by_hand(model.student, tap, inputs, samples)
    (theirs,) = by_hand(teacher, tap, inputs, samples)
    torch.testing.assert_close(losses['distill.g.loss'], (ours - theirs).norm())
    assert losses['distill.g.loss'] > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_gradient_of_the_gap_is_exact():
    model = distiller(
        stock_models.pspnet(),
        stock_models.pspnet(),
        dict(g=dict(tap='decode_head.bottleneck', loss=GRADIENT)),
    ).double()
    model.eval()
    inputs, samples = batch(model)
    inputs = inputs.double()
    weight = model.student.decode_head.conv_seg.weight

    def value():
        return model(inputs, samples, mode='loss')['distill.g.loss']

    value().backward()
    direction = torch.randn_like(weight)
    step = 1e-5
    with torch.no_grad():
        weight += step * direction
        above = value()
        weight -= 2 * step * direction
        below = value()
        weight += step * direction
    expected = (above - below) / (2 * step)
    torch.testing.assert_close((weight.grad * direction).sum(), expected, rtol=1e-5, atol=1e-9)


def test_the_student_learns_from_the_images_on_too():
    model = distiller(
        stock_models.pspnet(),
        stock_models.pspnet(),
        dict(g=dict(tap='backbone@input', loss=GRADIENT)),
        task=dict(loss_weight=0),
    ).train()
    inputs, samples = batch(model)
    losses = model(inputs, samples, mode='loss')
    assert set(losses) == {'distill.g.loss'}
    losses['distill.g.loss'].backward()
    for name, parameter in model.student.named_parameters():
        if name.startswith('backbone') and name.endswith('conv1.weight'):
            assert parameter.grad.abs().sum() > 0, name


def test_maps_and_gradients_in_one_run_of_the_teacher():
    terms = dict(
        g=dict(tap='decode_head.conv_seg', loss=GRADIENT),
        h=dict(tap='backbone.layer4', loss=GRADIENT),
        maps=dict(tap='decode_head.conv_seg', loss=stock_models.cwd()),
    )
    model = distiller(stock_models.pspnet(), stock_models.pspnet(), terms).eval()
    inputs, samples = batch(model)
    runs = []
    teacher = model.teachers['teacher'].model
    teacher.backbone.register_forward_hook(lambda *_: runs.append(1))
    losses = model(inputs, samples, mode='loss')
    assert len(runs) == 1
    expected = stock_models.build(stock_models.cwd())(model.student(inputs), teacher(inputs))
    torch.testing.assert_close(losses['distill.maps.loss'], expected)
    (ours,) = by_hand(model.student, 'backbone.layer4', inputs, samples)
    (theirs,) = by_hand(teacher, 'backbone.layer4', inputs, samples)
    torch.testing.assert_close(losses['distill.h.loss'], (ours - theirs).norm())


def test_a_term_that_is_off_does_not_run_the_teachers_loss(counters):
    off = dict(tap='decode_head.conv_seg', loss=GRADIENT, schedule=dict(start=5))
    maps = dict(tap='decode_head.conv_seg', loss=stock_models.cwd())
    model = distiller(stock_models.pspnet(), stock_models.pspnet(), dict(g=off, maps=maps)).train()
    inputs, samples = batch(model)
    model.teachers['teacher'].model.loss = None  # would fail
    assert 'distill.g.loss' not in model(inputs, samples, mode='loss')


def test_a_tap_that_is_overwritten_later_stays_on_the_path():
    tap = 'backbone.layer4@pre_relu'
    model = distiller(
        stock_models.pspnet(), stock_models.pspnet(), dict(g=dict(tap=tap, loss=GRADIENT))
    )
    model.eval()
    inputs, samples = batch(model)
    loss = model(inputs, samples, mode='loss')['distill.g.loss']

    def gradient(net):
        (after,) = by_hand(net, 'backbone.layer4', inputs, samples)
        with torch.no_grad():
            on = net.backbone(inputs)[-1] > 0
        return after * on

    gap = gradient(model.student) - gradient(model.teachers['teacher'].model)
    torch.testing.assert_close(loss, gap.norm())


@needs_ops
def test_detectors():
    model = distiller(
        stock_models.retinanet(), stock_models.retinanet(), dict(g=dict(tap='neck', loss=GRADIENT))
    )
    inputs, samples = batch(model.train())
    losses = model(inputs, samples, mode='loss')
    assert losses['distill.g.loss'] > 0
    losses['distill.g.loss'].backward()
    assert model.student.bbox_head.retina_cls.weight.grad.abs().sum() > 0
    assert model.student.backbone.layer4[0].conv1.weight.grad.abs().sum() > 0


@needs_ops
def test_focal_losses_get_targets_that_take_the_python_path():
    loss = build(dict(type='FocalLoss', _scope_='mmdet'))
    model = nn.ModuleList([loss])
    seen = []
    loss.register_forward_hook(
        lambda _, args, kwargs, __: seen.append([*args, *kwargs.values()][1].dim()),
        with_kwargs=True,
    )
    pred = torch.randn(6, 5, requires_grad=True)
    target, weight = torch.tensor([0, 4, 5, 5, 2, 1]), torch.rand(6)
    plain = loss(pred, target, weight, avg_factor=3)
    with twice_differentiable(model):
        hooked = loss(pred, target, weight, avg_factor=3)
        keywords = loss(pred, target=target, weight=weight, avg_factor=3)
    torch.testing.assert_close(hooked, plain)
    torch.testing.assert_close(keywords, plain)
    assert seen == [1, 2, 2]
    assert loss(pred, F.one_hot(target, 6)[:, :5], weight, avg_factor=3) == plain


def test_half_precision_does_not_lose_small_gradients():
    torch.manual_seed(0)
    maps = torch.randn(1, 4, 64, 64)
    weights = torch.rand_like(maps)

    def gradient(dtype):
        x = maps.to(dtype).requires_grad_()
        loss = (x * weights.to(dtype)).mean(dtype=torch.float32) * 1e-3
        return task_gradients(loss, dict(x=x), create_graph=False)['x']

    exact, half = gradient(torch.float32), gradient(torch.float16)
    assert half.dtype == torch.float32
    assert exact.median() < 6e-8  # below the smallest number of float16
    torch.testing.assert_close(half, exact, rtol=1e-2, atol=1e-11)


def test_autocast_changes_little():
    model = distiller(
        stock_models.pspnet(),
        stock_models.pspnet(),
        dict(g=dict(tap='decode_head.bottleneck', loss=GRADIENT)),
    ).eval()
    inputs, samples = batch(model)
    expected = model(inputs, samples, mode='loss')['distill.g.loss']
    with torch.autocast('cpu', torch.bfloat16):
        loss = model(inputs, samples, mode='loss')['distill.g.loss']
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)
    loss.backward()
    assert model.student.decode_head.conv_seg.weight.grad.isfinite().all()


def test_a_map_the_loss_does_not_depend_on_has_a_gradient_of_zero():
    x, y = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    gradients = task_gradients(x.sum(), dict(a=[x, y]), create_graph=True)
    assert gradients['a'][0].tolist() == [1, 1] and gradients['a'][1].tolist() == [0, 0, 0]


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * 2


class Compiled(nn.Module):
    def forward(self, x):
        return Once.apply(x)


def test_operations_without_a_second_derivative_are_named():
    x = torch.randn(3, requires_grad=True)
    before = Once.apply(x)
    assert once_only(before.square().sum(), before) is None
    assert once_only((Once.apply(before) * 3).sum(), before) == 'Once'
    model = distiller(
        stock_models.pspnet(),
        stock_models.pspnet(),
        dict(g=dict(tap='backbone.layer4', loss=GRADIENT)),
    )
    model.student.decode_head.dropout = Compiled()
    inputs, samples = batch(model)
    with pytest.raises(ValueError, match='cannot be differentiated twice: Once lies between') as e:
        model(inputs, samples, mode='loss')
    assert 'backbone.layer4' in str(e.value)


def test_gradients_of_other_shapes_are_refused():
    for tap, student, teacher in (
        ('decode_head.bottleneck', stock_models.pspnet(), stock_models.pspnet(16)),
        ('backbone.layer4', stock_models.pspnet(), stock_models.fcn()),
    ):
        with pytest.raises(ValueError, match='no connector can change that') as error:
            distiller(student, teacher, dict(g=dict(tap=tap, loss=GRADIENT)))
        assert f"distill.g: gradients at '{tap}' of the student" in str(error.value)
