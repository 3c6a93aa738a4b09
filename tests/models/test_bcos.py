"""B-cos layers against loops in numpy, finite differences and linear maps written out."""

from __future__ import annotations

import copy
import itertools
import math
import weakref

import numpy as np
import pytest
import torch
from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model.utils import convert_sync_batchnorm
from mmengine.registry import DefaultScope
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from mmkd_plugin.models.bcos import (
    BcosBatchNorm2d,
    BcosConv2d,
    _Scaled,
    dynamic_scale,
    explanation_mode,
    not_dynamic_linear,
    patch_norms,
    widened,
)
from tests.conftest import OLD_TORCH

CONV = dict(type='mmkd_plugin.BcosConv2d', b=2)
NORM = dict(type='mmkd_plugin.BcosBatchNorm2d')

#: Input, output, kernel, and what else differs.
SHAPES = [
    (3, 4, 1, {}),
    (3, 4, 3, dict(padding=1)),
    (3, 4, 3, dict(stride=2, padding=1)),
    (2, 3, (3, 2), dict(stride=(1, 2), padding=(0, 1))),
    (2, 3, 3, dict(dilation=2, padding=2)),
    (4, 6, 3, dict(dilation=(1, 2), stride=(2, 1), padding=1, groups=2)),
    (4, 6, 3, dict(padding=1, groups=2)),
    (4, 4, 3, dict(groups=4)),
    (3, 4, 7, dict(stride=2, padding=3)),
]
POWERS = [1, 1.5, 2, 3]


def made(*args, seed=0, **kwargs):
    torch.manual_seed(seed)
    return BcosConv2d(*args, **kwargs).double()


def noise(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def by_hand(x, weight, b, max_out=1, stride=1, padding=0, dilation=1, groups=1):
    """One filter and one patch at a time."""
    stride, padding, dilation = pair(stride), pair(padding), pair(dilation)
    n, _, h, w = x.shape
    filters, depth, kh, kw = weight.shape
    framed = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    rows = (h + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    columns = (w + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    out = np.zeros((n, filters // max_out, rows, columns))
    for image, channel, i, j in np.ndindex(out.shape):
        group = channel // (filters // max_out // groups)
        patch = [
            framed[image, c, i * stride[0] + p * dilation[0], j * stride[1] + q * dilation[1]]
            for c in range(group * depth, (group + 1) * depth)
            for p in range(kh)
            for q in range(kw)
        ]
        norm = math.sqrt(sum(value**2 for value in patch) + 1e-6)
        responses = []
        for one in weight[channel * max_out : (channel + 1) * max_out]:
            length = math.sqrt((one**2).sum())
            responses.append(sum(a * v for a, v in zip(one.ravel(), patch, strict=True)) / length)
        best = max(responses)
        if b == 1:
            scale = 1
        elif b == 2:
            scale = abs(best) / norm
        else:
            scale = (abs(best / norm) + 1e-6) ** (b - 1)
        out[image, channel, i, j] = scale * best
    return out


# The layer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('b', POWERS)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_value(shape, b):
    *args, kwargs = shape
    for max_out in (1, 2) if b == 2 else (1,):
        conv, x = made(*args, b=b, max_out=max_out, **kwargs), noise(2, args[0], 7, 8)
        weight = conv.weight.detach().numpy()
        assert weight.shape[0] == max_out * args[1]
        expected = by_hand(x.numpy(), weight, b, max_out, **kwargs)
        for grad in (True, False):  # with and without the function that can be held
            with torch.set_grad_enabled(grad):
                out = conv(x)
            np.testing.assert_allclose(out.detach(), expected, rtol=1e-12, atol=1e-14)


def test_the_length_of_a_filter_does_not_matter():
    conv, x = made(3, 4, 3), noise(1, 3, 6, 6)
    out = conv(x)
    with torch.no_grad():
        conv.weight.mul_(torch.tensor([0.01, 1, 7, 1000.0])[:, None, None, None])
    torch.testing.assert_close(conv(x), out)


def test_nothing_gives_more_than_its_norm():
    conv, x = made(3, 1, 3), noise(1, 3, 3, 3)
    with torch.no_grad():
        conv.weight.copy_(x)
    assert conv(x).item() == pytest.approx(x.norm().item())
    assert conv(-x).item() == pytest.approx(-x.norm().item())
    assert made(3, 1, 3, b=8)(x).abs() < made(3, 1, 3, b=2)(x).abs() < x.norm()


@pytest.mark.parametrize('b', POWERS)
@pytest.mark.parametrize('max_out', [1, 2])
def test_nothing_in_nothing_out(b, max_out):
    conv = made(3, 4, 3, padding=1, b=b, max_out=max_out)
    x = torch.zeros(1, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    out = conv(x)
    assert not out.any()
    for mode in (False, True):
        with explanation_mode(conv) if mode else torch.enable_grad():
            (first,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        second = torch.autograd.grad(
            first.square().sum(), [x, conv.weight], retain_graph=True, allow_unused=True
        )
        for gradient in (first, *second):
            assert gradient is None or torch.isfinite(gradient).all()


@pytest.mark.parametrize('b', POWERS)
@pytest.mark.parametrize('shape', [SHAPES[2], SHAPES[5]], ids=str)
def test_first_and_second_derivative(shape, b):
    *args, kwargs = shape
    conv, x = made(*args, b=b, **kwargs), noise(1, args[0], 5, 4).requires_grad_()

    def run(x, weight):
        return torch.func.functional_call(conv, dict(weight=weight), x)

    weight = conv.weight.detach().requires_grad_()
    assert gradcheck(run, (x, weight))
    assert gradgradcheck(run, (x, weight))


@pytest.mark.parametrize('b', [1.5, 2, 3])
def test_the_derivative_is_that_of_the_formula(b):
    """As in autograd, even where the cosine is as small as its stabiliser."""
    linear, norm = noise(2, 3, 4, 4), 1 + noise(2, 1, 4, 4, seed=2).square()
    linear[0] *= 1e-6
    layer, found = BcosConv2d(3, 3, 1, b=b), []
    for scaled in (_Scaled.apply, lambda x, n, layer: x * dynamic_scale(x, n, layer.b)):
        values = [linear.clone().requires_grad_(), norm.clone().requires_grad_()]
        out = scaled(*values, layer)
        found.append([out, *torch.autograd.grad(out, values, noise(*out.shape, seed=3))])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)


def test_max_out_has_a_derivative():
    conv, x = made(2, 3, 3, max_out=3), noise(1, 2, 5, 5).requires_grad_()
    assert gradcheck(conv, (x,)) and gradgradcheck(conv, (x,))


def test_layout_does_not_matter():
    for kwargs in ({}, dict(groups=2), dict(dilation=2), dict(max_out=2)):
        conv, x = made(4, 6, 3, padding=1, **kwargs).float(), noise(2, 4, 9, 8).float()
        torch.testing.assert_close(conv(x.to(memory_format=torch.channels_last)), conv(x))


def kept_maps(run, shape, dtype):
    """Counts the maps of a shape and precision that a forward keeps for the backward."""
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x)
    with hooks:
        run()
    different = {x.data_ptr(): x for x in kept}.values()
    return sum(x.shape == shape and x.dtype == dtype for x in different)


def test_no_map_but_the_response_is_kept_for_the_way_back():
    conv, x = made(8, 16, 3, padding=1), noise(1, 8, 12, 12)
    assert kept_maps(lambda: conv(x), (1, 16, 12, 12), torch.float64) == 1


@pytest.mark.parametrize(
    'kwargs, text',
    [
        (dict(b=0.5), 'b must be at least 1, got 0.5'),
        (dict(b='2'), 'b must be a number'),
        (dict(max_out=0), 'max_out must be a whole number from 1 on, got 0'),
    ],
)
def test_arguments_are_checked(kwargs, text):
    with pytest.raises((TypeError, ValueError), match=text):
        BcosConv2d(3, 4, 1, **kwargs)


def test_what_it_says_of_itself():
    assert 'padding=(1, 1), bias=False, b=2, max_out=4' in repr(
        BcosConv2d(3, 4, 3, padding=1, max_out=4)
    )


# Precision ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """The response is as exact as a convolution, whatever the size of what is squared."""
    conv, x = made(8, 6, 3).float(), 300 * noise(1, 8, 9, 9).float()  # squares beyond float16
    exact, cast = conv(x), copy.deepcopy(conv).to(dtype)
    with torch.autocast('cpu', dtype):
        amp = conv(x)
        (gradient,) = torch.autograd.grad(amp.float().sum(), conv.weight)
    tolerance = 8 * torch.finfo(dtype).eps * exact.abs().max()
    for out in (amp, cast(x.to(dtype))):
        assert out.dtype == dtype
        assert (out.float() - exact).abs().max() < tolerance
    (expected,) = torch.autograd.grad(exact.sum(), conv.weight)
    assert gradient.dtype == torch.float32
    assert (gradient - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_norm_in_half_precision(dtype):
    norm, x = BcosBatchNorm2d(4), 300 * noise(4, 4, 9, 9).float()
    expected = norm(x)
    out = norm(x.to(dtype))
    assert out.dtype == dtype
    assert (out - expected).abs().max() < 8 * torch.finfo(dtype).eps * expected.abs().max()
    assert norm.half().running_var.dtype == torch.float16
    assert norm(x.half()).dtype == torch.float16


def test_a_wide_copy_is_gone_after_use():
    x = noise(2, 3).bfloat16().requires_grad_()
    with widened(x) as wide:
        y = wide * wide
    kept = weakref.ref(wide)
    del wide
    assert kept() is None and y.dtype == torch.float32
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert gradient.dtype == torch.bfloat16 and torch.equal(gradient, 2 * x)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    assert torch.equal(second, torch.full_like(x, 2))


def test_no_wide_copies_are_kept_for_the_way_back():
    """Squares and variance come from float32 copies; the backward makes its own."""
    model = nn.Sequential(BcosConv2d(4, 4, 1), BcosBatchNorm2d(4), BcosConv2d(4, 4, 1)).bfloat16()
    x = noise(2, 4, 9, 9).bfloat16().requires_grad_()
    shape = (2, 4, 9, 9)
    assert kept_maps(lambda: model(x), shape, torch.float32) == 0
    assert kept_maps(lambda: model(x), shape, torch.bfloat16) >= 4

    wide, y = copy.deepcopy(model).float(), x.detach().float().requires_grad_()
    for held in (False, True):
        found = []
        for net, image in ((model, x), (wide, y)):
            out = net(image)
            with explanation_mode(net) if held else torch.enable_grad():
                (first,) = torch.autograd.grad(out.float().sum(), image, create_graph=True)
            (second,) = torch.autograd.grad(first.float().square().sum(), net[0].weight)
            found.append((first.float(), second.float()))
        for ours, expected in zip(*found, strict=True):
            assert (ours - expected).abs().max() < 0.1 * expected.abs().max()


# The norm -----------------------------------------------------------------------------------------


def test_norm_and_its_running_variance():
    norm, x = BcosBatchNorm2d(3, eps=1e-3, momentum=0.25).double(), 2 + noise(4, 3, 5, 6)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1, 2]))
    data = x.numpy()
    weight = norm.weight.detach().numpy()
    variance = [np.mean((data[:, c] - data[:, c].mean()) ** 2) for c in range(3)]

    def expected(variance):
        factors = [weight[c] / math.sqrt(variance[c] + 1e-3) for c in range(3)]
        return data * np.array(factors)[:, None, None]

    np.testing.assert_allclose(norm(x).detach(), expected(variance), rtol=1e-12)
    running = [0.75 * 1 + 0.25 * v for v in variance]
    np.testing.assert_allclose(norm.running_var, running, rtol=1e-12)
    np.testing.assert_allclose(norm.eval()(x).detach(), expected(running), rtol=1e-12)
    np.testing.assert_allclose(norm.running_var, running, rtol=1e-12)
    assert list(norm.state_dict()) == ['weight', 'running_var']


def test_norm_has_derivatives():
    norm, x = BcosBatchNorm2d(2).double(), noise(2, 2, 3, 3).requires_grad_()
    assert gradcheck(norm, (x,)) and gradgradcheck(norm, (x,))


def test_norm_of_a_constant_is_finite():
    norm, x = BcosBatchNorm2d(2), torch.ones(2, 2, 3, 3, requires_grad=True)
    for value in (0, 1):
        out = norm(value * x)
        (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        assert torch.isfinite(out).all() and torch.isfinite(gradient).all()


def test_nothing_puts_the_mean_back():
    model = nn.Sequential(BcosConv2d(3, 4, 1), BcosBatchNorm2d(4))
    assert type(convert_sync_batchnorm(copy.deepcopy(model))[1]) is BcosBatchNorm2d


# Explanations -------------------------------------------------------------------------------------


def matrix_by_hand(conv, x):
    """W(x) of one image, as a matrix: unit filters, each row times the scale of its position."""
    pad, step = conv.padding[0], conv.stride[0]
    channels, h, w = x.shape
    rows = []
    out = by_hand(x[None].numpy(), conv.weight.detach().numpy(), 2, stride=step, padding=pad)[0]
    for c, i, j in np.ndindex(out.shape):
        one = conv.weight[c].detach().numpy()
        framed = np.zeros((channels, h + 2 * pad, w + 2 * pad))
        framed[:, i * step : i * step + 3, j * step : j * step + 3] = one / np.linalg.norm(one)
        row = framed[:, pad : pad + h, pad : pad + w].ravel()
        patch = np.pad(x.numpy(), ((0, 0), (pad, pad), (pad, pad)))
        patch = patch[:, i * step : i * step + 3, j * step : j * step + 3]
        rows.append(row * abs(row @ x.numpy().ravel()) / math.sqrt((patch**2).sum() + 1e-6))
    return np.array(rows), out


def jacobian(model, x):
    x = x.clone().requires_grad_()
    y = model(x[None])[0].flatten()
    with explanation_mode(model):
        rows = [torch.autograd.grad(one, x, retain_graph=True)[0].flatten() for one in y]
    return torch.stack(rows), y


@pytest.mark.parametrize('step', [1, 2])
def test_the_gradient_is_the_dynamic_weight(step):
    conv, x = made(2, 3, 3, stride=step, padding=1), noise(2, 5, 6)
    expected, out = matrix_by_hand(conv, x)
    found, _ = jacobian(conv, x)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(found @ x.flatten(), out.ravel(), rtol=1e-10)
    plain = torch.autograd.functional.jacobian(lambda x: conv(x[None]).flatten(), x)
    assert not np.allclose(plain.flatten(1), expected)


def network(b=2.0, **kwargs):
    torch.manual_seed(0)
    return nn.Sequential(
        BcosConv2d(3, 6, 3, padding=1, b=b, **kwargs),
        BcosBatchNorm2d(6),
        nn.AvgPool2d(3, 2, 1),
        BcosConv2d(6, 4, 3, stride=2, padding=1, b=b),
        nn.ReLU(),
        BcosBatchNorm2d(4),
        nn.Upsample(scale_factor=2, mode='bilinear'),
        nn.Conv2d(4, 2, 1, bias=False),
    ).double()


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('b, kwargs', [(2, {}), (1.5, dict(max_out=2)), (3, dict(groups=3))])
def test_weights_times_input_is_the_output(b, kwargs, training):
    model, x = network(b, **kwargs).train(training), noise(3, 9, 10)
    rows, y = jacobian(model, x)
    torch.testing.assert_close(rows @ x.flatten(), y, rtol=1e-10, atol=1e-12)


def test_the_mode_changes_nothing_about_a_forward():
    """A step of training has one forward, which is explained too and must not miss the norms."""
    model, x = network(), noise(2, 3, 8, 8)
    other = copy.deepcopy(model)
    expected = other(x)
    with explanation_mode(model):
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    state = other.state_dict()
    assert (state['1.running_var'] != 1).all()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize('b', [1.5, 2])
def test_several_outputs_in_one_batched_pass(b):
    model, x = network(b, groups=3), noise(1, 3, 8, 8).requires_grad_()
    y = model(x)
    rows = noise(3, *y.shape)

    def gradient(row):
        return torch.autograd.grad(y, x, row, create_graph=True, retain_graph=True)[0]

    for mode in (True, False):
        with explanation_mode(model) if mode else torch.enable_grad():
            together = torch.func.vmap(gradient)(rows)
            singly = torch.stack([gradient(row) for row in rows])
        torch.testing.assert_close(together, singly)
        learnt = [
            torch.autograd.grad(w.square().sum(), model[0].weight, retain_graph=True)[0]
            for w in (together, singly)
        ]
        torch.testing.assert_close(*learnt)


def test_one_forward_is_explained_and_learnt_from():
    """Only the place of the backward counts."""
    model, x = network(), noise(1, 3, 8, 8).requires_grad_()
    y = model(x)
    (plain,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    with explanation_mode(model):
        (held,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        torch.testing.assert_close((held * x).sum(), y.sum())
        inside = model(x)
    (after,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(after, plain, rtol=0, atol=0)
    assert not torch.allclose(held, plain)
    (outside,) = torch.autograd.grad(inside.sum(), x)
    torch.testing.assert_close(outside, plain, rtol=0, atol=0)


@pytest.mark.parametrize('b, kwargs', [(2, {}), (1.5, dict(max_out=2)), (2, dict(dilation=2))])
def test_weights_can_be_learnt(b, kwargs):
    """The derivative of W, of which the scales are a part, against finite differences."""
    torch.manual_seed(0)
    model = nn.Sequential(
        BcosConv2d(2, 4, 3, padding=2, b=b, **kwargs), BcosBatchNorm2d(4), BcosConv2d(4, 2, 1, b=b)
    ).double()
    names = [name for name, _ in model.named_parameters()]
    x = noise(1, 2, 4, 3)
    probe = torch.randn_like(model(x))

    def explained(x, *weights):
        y = torch.func.functional_call(model, dict(zip(names, weights, strict=True)), x)
        with explanation_mode(model):
            return torch.autograd.grad(y, x, probe, create_graph=True)[0]

    weights = [value.detach().clone().requires_grad_() for value in model.parameters()]
    assert gradcheck(explained, (x.requires_grad_(), *weights))


def test_a_mode_that_breaks_off_is_over():
    model = network()
    with pytest.raises(RuntimeError, match='broken'), explanation_mode(model):
        assert all(layer.held for layer in (model[0], model[1], model[3], model[5]))
        raise RuntimeError('broken')
    assert not any(getattr(layer, 'held', False) for layer in model)
    with explanation_mode(model[3]):
        with explanation_mode(model):
            pass
        assert model[3].held and not model[0].held


def test_an_ordinary_model_is_left_alone():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), torch.rand(1, 3, 4, 4)
    with explanation_mode(model):
        model(x).sum().backward()
    assert model[0].weight.grad is not None


def test_the_first_layer_needs_no_gradient_of_its_input():
    conv, x = made(3, 4, 3), noise(1, 3, 5, 5)
    conv(x).sum().backward()
    expected = conv.weight.grad.clone()
    conv.zero_grad()
    conv(x.requires_grad_()).sum().backward()
    torch.testing.assert_close(conv.weight.grad, expected)


# In OpenMMLab -------------------------------------------------------------------------------------


@pytest.mark.parametrize('scope', ['mmseg', 'mmdet', None])
def test_mmcv_builds_it_in_any_scope(scope):
    with DefaultScope.overwrite_default_scope(scope):
        block = ConvModule(3, 4, 3, padding=1, conv_cfg=CONV, norm_cfg=NORM, act_cfg=None)
        alone = ConvModule(3, 4, 3, conv_cfg=CONV, act_cfg=None)
        name, _ = build_norm_layer(dict(NORM, requires_grad=False), 4)
    assert type(block.conv) is BcosConv2d and type(block.bn) is BcosBatchNorm2d and name == 'bn'
    assert alone.conv.bias is None
    assert block(torch.rand(2, 3, 8, 8)).shape == (2, 4, 8, 8)
    assert list(block.state_dict()) == ['conv.weight', 'bn.weight', 'bn.running_var']


def test_checkpoints_of_the_authors_are_read():
    layers = nn.Sequential(BcosConv2d(3, 4, 1), BcosBatchNorm2d(4))
    weight, variance, factor = torch.rand(4, 3, 1, 1), torch.rand(4), torch.rand(4)
    theirs = {
        '0.linear.weight': weight,
        '1.weight': factor,
        '1.running_mean': torch.rand(4),
        '1.running_var': variance,
        '1.num_batches_tracked': torch.tensor(3),
    }
    layers.load_state_dict(theirs)
    assert torch.equal(layers[0].weight, weight) and torch.equal(layers[1].running_var, variance)
    again = copy.deepcopy(layers)
    again.load_state_dict(layers.state_dict())


def test_what_is_not_dynamic_linear():
    model = nn.ModuleDict(
        dict(
            good=network(),
            bias=BcosConv2d(3, 4, 1, bias=True),  # has none
            conv=nn.Conv2d(3, 4, 1),
            linear=nn.Linear(3, 4, bias=False),
            bn=nn.BatchNorm2d(4, affine=False),
            block=ConvModule(3, 4, 1, conv_cfg=CONV, norm_cfg=dict(type='GN', num_groups=2)),
            attention=nn.MultiheadAttention(4, 1, bias=False),
            pools=nn.Sequential(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Dropout()),
            acts=nn.Sequential(nn.LeakyReLU(), nn.PReLU(), nn.GELU(), nn.ReLU6()),
            loss=nn.CrossEntropyLoss(),
        )
    )
    assert not_dynamic_linear(model) == [
        'conv', 'bn', 'block.gn', 'attention', 'acts.2', 'acts.3',
    ]  # fmt: skip
    assert not_dynamic_linear(network()) == []


@pytest.mark.parametrize('training', [False, True])
def test_it_can_be_traced_and_exported(training):
    model, x = network().float().train(training), noise(1, 3, 8, 8).float()
    with torch.no_grad():
        expected = copy.deepcopy(model)(x)
        traced = torch.jit.trace(copy.deepcopy(model), x, check_trace=False)
        torch.testing.assert_close(traced(x), expected)
        if OLD_TORCH:  # it exports nothing with a context manager inside
            return
        exported = torch.export.export(copy.deepcopy(model), (x,)).module()
        torch.testing.assert_close(exported(x), expected)


def test_all_combinations_of_groups_and_dilation_have_one_norm():
    """Pooling and unfolding give the same number."""
    x = noise(2, 6, 12, 11)
    for k, s, p, g in itertools.product(
        [(1, 1), (3, 2)], [(1, 1), (2, 3)], [(0, 0), (1, 0)], [1, 3]
    ):
        if p[0] > k[0] // 2:
            continue
        spread = torch.zeros(2, 6, 24, 22, dtype=x.dtype)
        spread[:, :, ::2, ::2] = x
        pooled = patch_norms(x, k, s, p, (1, 1), g)
        strides, paddings = tuple(2 * v for v in s), tuple(2 * v for v in p)
        unfolded = patch_norms(spread, k, strides, paddings, (2, 2), g)
        rows, columns = (
            min(a, b) for a, b in zip(pooled.shape[2:], unfolded.shape[2:], strict=True)
        )
        torch.testing.assert_close(
            unfolded[..., :rows, :columns], pooled[..., :rows, :columns], rtol=1e-12, atol=0
        )
