"""The necks of FRSKD, node by node, against numpy code written from the paper and the weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from mmkd_plugin.models.necks import BiFPN, BiFPNSegSelfTeacher, BiFPNSelfTeacher
from mmkd_plugin.models.necks.frskd import fused, pool_down
from mmkd_plugin.registry import MODELS
from tests.models.necks.frskd_by_hand import (
    bifpn_by_hand,
    down_to,
    same_pool,
    seg_self_teacher_by_hand,
    self_teacher_by_hand,
)

# --- in torch --------------------------------------------------------------------------------


def randomised(neck, training=False, seed=0):
    """In float64, with every parameter and every running statistic away from its start.

    Shifts are mostly positive, so that the ReLUs leave something.
    """
    generator = torch.Generator().manual_seed(seed)
    neck = neck.double().train(training)
    with torch.no_grad():
        for name, value in neck.state_dict().items():
            if name.endswith('num_batches_tracked'):
                continue
            noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            if value.ndim == 4:
                value.copy_(noise / math.sqrt(value[0].numel()))
            elif name.endswith('running_mean'):
                value.copy_(noise / 2)
            else:
                value.copy_(1 + noise / 2 if name.endswith('.bias') else 0.5 + noise.abs())
    return neck


def random_maps(channels, sizes, batch=2, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, c, *size, generator=generator, dtype=torch.float64).relu().to(dtype)
        for c, size in zip(channels, sizes, strict=False)  # of the sizes, as many as needed
    ]


def assert_equal_maps(values, expected):
    assert isinstance(values, tuple) and len(values) == len(expected)
    for value, other in zip(values, expected, strict=True):
        assert value.shape == other.shape and np.abs(other).max() > 0
        np.testing.assert_allclose(value.detach().numpy(), other, rtol=1e-9, atol=1e-11)


def assert_all_used(neck, used, training):
    """Every parameter belongs to a part of the paper."""
    names = set(neck.state_dict() if not training else dict(neck.named_parameters()))
    assert {name for name in names if not name.endswith('num_batches_tracked')} == used


SIZES = [
    [(8, 12), (4, 6), (2, 3), (1, 2)],  # halved
    [(9, 13), (5, 7), (3, 4), (2, 2)],  # odd, rounded up
    [(9, 13), (4, 6), (2, 3), (1, 1)],  # odd, rounded down
    [(8, 8), (4, 4), (4, 4), (4, 4)],  # dilated
    [(7, 10), (5, 6), (5, 4), (1, 3)],  # arbitrary
    [(12, 5), (4, 5), (1, 1), (1, 1)],
    [(2, 2), (3, 5), (4, 4), (1, 1)],  # larger in between
]


# --- classification form ---------------------------------------------------------------------


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('sizes', SIZES)
def test_self_teacher_node_by_node(sizes, training):
    neck = randomised(BiFPNSelfTeacher([3, 4, 5, 2]), training)
    maps = random_maps([3, 4, 5, 2], sizes)
    expected, nodes, used = self_teacher_by_hand(neck, [x.numpy() for x in maps], 2, training)
    seen = {}
    parts = dict(L='lateral', L2='lateral2', P='top_down', T='bottom_up')
    for key, part in parts.items():
        for number, module in enumerate(getattr(neck, part)):
            level = number + (2 if key in ('L2', 'T') else 1)
            module.register_forward_hook(
                lambda _, __, out, at=(key, level): seen.update({at: out.detach().numpy().copy()})
            )
    values = neck(maps)
    assert_equal_maps(values, expected)
    assert len(seen) == 4 + 3 + 3 + 3
    for (key, level), value in seen.items():
        np.testing.assert_allclose(value, nodes[key][level], rtol=1e-9, atol=1e-11)
    assert_all_used(neck, used, training)
    assert any((nodes['T'][i] < 0).any() for i in nodes['T'])  # the last ReLU does something


@pytest.mark.parametrize(
    ('options', 'widths'),
    [
        (dict(width=1), [2, 3, 5]),
        (dict(width=4), [8, 12, 20]),
        (dict(width=1.5), [3, 4, 7]),
        (dict(width=0.5), [1, 1, 2]),
        (dict(depth=1), [4, 6, 10]),
        (dict(depth=3), [4, 6, 10]),
        (dict(out_channels=4), [4, 4, 4]),
        (dict(out_channels=1, depth=1, width=7), [1, 1, 1]),
    ],
)
def test_widths_and_depths_of_the_self_teacher(options, widths):
    channels, sizes = [2, 3, 5], [(7, 6), (4, 3), (2, 2)]
    neck = randomised(BiFPNSelfTeacher(channels, **options))
    maps = random_maps(channels, sizes)
    expected, _, used = self_teacher_by_hand(
        neck, [x.numpy() for x in maps], options.get('depth', 2), constant='out_channels' in options
    )
    values = neck(maps)
    assert [tuple(x.shape) for x in values] == [
        (2, c, *s) for c, s in zip(widths, sizes, strict=True)
    ]
    assert neck.out_channels == widths
    assert_equal_maps(values, expected)
    assert_all_used(neck, used, training=False)


def test_two_levels_are_enough():
    neck = randomised(BiFPNSelfTeacher([2, 3]))
    maps = random_maps([2, 3], [(4, 4), (2, 2)])
    assert [len(w) for w in neck.bottom_up_weights] == [2]
    assert_equal_maps(neck(maps), self_teacher_by_hand(neck, [x.numpy() for x in maps], 2)[0])


@pytest.mark.parametrize(
    ('two', 'three'),
    [
        ([1.0, -2.0], [-1.0, 0.5, 2.0]),  # below zero: left out
        ([-1.0, 3.0], [0.0, -0.5, 1e-7]),
        ([0.0, 0.0], [0.0, 0.0, 0.0]),  # nothing is left
        ([-1.0, -1.0], [-3.0, 0.0, -1e-9]),
    ],
)
def test_fusion_weights_of_any_sign(two, three):
    neck = randomised(BiFPNSelfTeacher([2, 3, 4], width=1))
    with torch.no_grad():
        for weights in (*neck.top_down_weights, *neck.bottom_up_weights):
            weights.copy_(torch.tensor(two if len(weights) == 2 else three))
    maps = random_maps([2, 3, 4], [(8, 8), (4, 4), (2, 2)])
    values = neck(maps)
    assert_equal_maps(values, self_teacher_by_hand(neck, [x.numpy() for x in maps], 2)[0])
    sum(x.square().sum() for x in values).backward()
    assert all(p.grad.isfinite().all() for p in neck.parameters())


def test_fusion_by_hand():
    maps = [torch.full((1, 1, 1, 1), value) for value in (1.0, 10.0, 100.0)]
    assert fused(torch.tensor([1.0, 1, 1]), maps).item() == pytest.approx(37, rel=1e-6)
    assert fused(torch.tensor([3.0, 1]), maps[:2]).item() == pytest.approx(13 / 4, rel=1e-6)
    assert fused(torch.tensor([1.0, -5, 1]), maps).item() == pytest.approx(50.5, rel=1e-6)
    assert fused(torch.zeros(3), maps).item() == 0
    assert fused(torch.tensor([1e-6, 0]), maps[:2]).item() == pytest.approx(0.5)
    half = fused(torch.ones(2), [x.bfloat16() for x in maps[:2]])  # as under autocast
    assert half.dtype == torch.bfloat16 and half.item() == 5.5


def test_fusion_weights_start_at_one():
    neck = BiFPNSelfTeacher([2, 3, 4, 5])
    weights = [*neck.top_down_weights, *neck.bottom_up_weights]
    assert [len(w) for w in weights] == [2, 2, 2, 3, 3, 2]
    for w in weights:
        assert isinstance(w, nn.Parameter) and w.requires_grad and (w == 1).all()


@pytest.mark.parametrize('height', range(1, 8))
@pytest.mark.parametrize('width', range(1, 8))
def test_pooling_pads_as_tensorflow_does(height, width):
    x = torch.randn(1, 2, height, width, dtype=torch.float64)  # below 0 the zeros count
    size = -(-height // 2), -(-width // 2)
    expected = same_pool(x.numpy(), (2, 2))
    assert np.array_equal(pool_down(x, size).numpy(), expected)


def test_pooling_by_hand():
    x = torch.tensor([[[[1.0, 2, 3, 4], [8, 7, 6, 5], [9, 9, 1, 0], [0, 1, 2, 3]]]])
    # an even size has its zeros below and to the right: the windows are rows 0-2 and 2-3
    assert pool_down(x, (2, 2)).tolist() == [[[[9, 6], [9, 3]]]]
    # an odd size on both sides: -1 to 1 and 1 to 2
    assert pool_down(x[:, :, :3, :3], (2, 2)).tolist() == [[[[8, 7], [9, 9]]]]
    assert pool_down(x[:, :, :2, :2], (2, 2)).tolist() == [[[[8, 8], [8, 8]]]]  # stride 1
    assert pool_down(-x[:, :, :3, :3], (2, 2)).tolist() == [[[[0, 0], [0, 0]]]]


@pytest.mark.parametrize('old', [(8, 8), (7, 5), (6, 1), (1, 1), (3, 9)])
@pytest.mark.parametrize('new', [(1, 1), (2, 3), (4, 4), (5, 2), (9, 9)])
def test_pooling_to_any_size(old, new):
    x = torch.rand(2, 3, *old, dtype=torch.float64)
    assert np.array_equal(pool_down(x, new).numpy(), down_to(x.numpy(), new))


# --- segmentation form -----------------------------------------------------------------------


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('num_layers', [1, 2, 3])
@pytest.mark.parametrize('sizes', SIZES[:5])
def test_seg_self_teacher_node_by_node(sizes, num_layers, training):
    neck = randomised(BiFPNSegSelfTeacher(3, num_layers, num_levels=4), training)
    maps = random_maps([3] * 4, sizes)
    expected, used = seg_self_teacher_by_hand(neck, [x.numpy() for x in maps], num_layers, training)
    assert_equal_maps(neck(maps), expected)
    assert_all_used(neck, used, training)


def test_the_default_has_six_levels_and_two_layers():
    neck = randomised(BiFPNSegSelfTeacher(2))
    sizes = [(33, 16), (17, 8), (9, 4), (5, 2), (3, 1), (2, 1)]
    maps = random_maps([2] * 6, sizes)
    assert_equal_maps(neck(maps), seg_self_teacher_by_hand(neck, [x.numpy() for x in maps], 2)[0])
    assert neck.in_channels == neck.out_channels == [2] * 6


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('sizes', [[*SIZES[0][:3]], [*SIZES[1][:3]], [*SIZES[3][:3]], SIZES[4][:3]])
def test_student_neck_node_by_node(sizes, training):
    neck = randomised(BiFPN([3, 4, 5], channels=2, num_layers=2, num_levels=5), training)
    maps = random_maps([3, 4, 5], sizes)
    expected, used = bifpn_by_hand(neck, [x.numpy() for x in maps], 2, 5, training)
    assert_equal_maps(neck(maps), expected)
    assert_all_used(neck, used, training)
    assert neck.out_channels == [2] * 5


@pytest.mark.parametrize(('inputs', 'levels'), [(1, 2), (1, 3), (4, 4), (4, 6)])
def test_numbers_of_levels_of_the_student_neck(inputs, levels):
    channels, sizes = [2, 3, 4, 5][:inputs], [(16, 12), (8, 6), (4, 3), (2, 2)][:inputs]
    neck = randomised(BiFPN(channels, channels=3, num_levels=levels))
    maps = random_maps(channels, sizes)
    assert_equal_maps(neck(maps), bifpn_by_hand(neck, [x.numpy() for x in maps], 3, levels)[0])


# --- both ------------------------------------------------------------------------------------

NECKS = {
    'self-teacher': (lambda: BiFPNSelfTeacher([3, 4, 5]), [3, 4, 5]),
    'constant': (lambda: BiFPNSelfTeacher([3, 4, 5], out_channels=4), [3, 4, 5]),
    'fractional': (lambda: BiFPNSelfTeacher([4, 6, 8], width=0.75), [4, 6, 8]),
    'segmentation': (lambda: BiFPNSegSelfTeacher(4, num_levels=3), [4, 4, 4]),
    'student': (lambda: BiFPN([3, 4, 5], channels=4, num_levels=5), [3, 4, 5]),
}


@pytest.fixture(params=NECKS)
def built(request):
    torch.manual_seed(0)
    build, channels = NECKS[request.param]
    return build(), channels


HALVED = [(8, 8), (4, 4), (2, 2)]


@pytest.mark.parametrize('training', [False, True])
def test_autocast(built, training):
    neck, channels = built
    neck.train(training)
    maps = random_maps(channels, HALVED, dtype=torch.float32)
    expected = [x.detach() for x in neck(maps)]
    with torch.autocast('cpu', torch.bfloat16):
        values = neck([x.bfloat16() for x in maps])
    for value, other in zip(values, expected, strict=True):
        assert value.dtype == torch.bfloat16 and value.isfinite().all()
        if not training:  # the deviation of a few equal numbers magnifies their rounding
            torch.testing.assert_close(value.float(), other, rtol=0.1, atol=0.1)
    sum(x.float().square().sum() for x in values).backward()
    assert all(p.grad.dtype == torch.float32 for p in neck.parameters())
    assert all(p.grad.isfinite().all() for p in neck.parameters())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_in_half_precision(built, dtype):
    neck, channels = built
    values = neck.to(dtype)(random_maps(channels, HALVED, dtype=dtype))
    assert all(x.dtype == dtype and x.isfinite().all() for x in values)


def test_one_image_of_one_position(built):
    neck, channels = built
    maps = random_maps(channels, [(1, 1)] * 3, batch=1, dtype=torch.float32)
    values = neck.eval()(maps)
    assert [tuple(x.shape) for x in values] == [(1, c, 1, 1) for c in neck.out_channels]
    assert all(x.isfinite().all() for x in values)


def test_gradient_reaches_every_parameter_and_input(built):
    neck, channels = built
    neck = randomised(neck)  # in training, a BN takes the gradient from the bias before it
    maps = [x.requires_grad_() for x in random_maps(channels, HALVED, batch=4)]
    sum(x.square().sum() for x in neck(maps)).backward()
    assert len(list(neck.parameters())) > 10
    for name, value in (*neck.named_parameters(), *enumerate(maps)):
        assert value.grad is not None and value.grad.isfinite().all(), name
        assert value.grad.any(), name


def test_inputs_are_left_alone(built):
    neck, channels = built
    maps = random_maps(channels, HALVED, dtype=torch.float32)
    copies = [x.clone() for x in maps]
    first = [x.detach().clone() for x in neck.eval()(maps)]
    assert all(map(torch.equal, maps, copies))
    assert all(map(torch.equal, neck(list(maps)), first))
    assert all(map(torch.equal, neck(tuple(maps)), first))
    strided = [torch.stack([x, x + 1], -1)[..., 0] for x in maps]
    last = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    for other in (strided, last):
        for value, expected in zip(neck(other), first, strict=True):
            torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(
    ('build', 'channels', 'sizes'),
    [
        (lambda: BiFPNSelfTeacher([2, 1], width=1, depth=2), [2, 1], [(3, 2), (2, 1)]),
        (lambda: BiFPNSelfTeacher([1, 2], width=1.5, depth=1), [1, 2], [(2, 2), (2, 2)]),
        (lambda: BiFPNSegSelfTeacher(2, num_levels=2), [2, 2], [(3, 2), (2, 1)]),
        (lambda: BiFPN([2, 1], 2, num_layers=1, num_levels=3), [2, 1], [(3, 2), (2, 1)]),
    ],
)
def test_gradcheck(build, channels, sizes):
    torch.manual_seed(0)
    neck = randomised(build())
    names, parameters = zip(*neck.named_parameters(), strict=True)
    maps = [x + 0.1 for x in random_maps(channels, sizes, batch=1)]

    def run(*tensors):
        given = dict(zip(names, tensors[: len(names)], strict=True))
        return torch.func.functional_call(neck, given, (list(tensors[len(names) :]),))

    tensors = [x.detach().requires_grad_() for x in (*parameters, *maps)]
    assert torch.autograd.gradcheck(run, tensors)


@pytest.mark.parametrize('name', NECKS)
def test_state_dict_survives_a_new_instance(name):
    build, channels = NECKS[name]
    neck = build()
    neck(random_maps(channels, HALVED, dtype=torch.float32))  # moves the running statistics
    other = build()
    other.load_state_dict(neck.state_dict())
    maps = random_maps(channels, HALVED, dtype=torch.float32)
    assert all(map(torch.equal, other.eval()(maps), neck.eval()(maps)))


# --- sizes -----------------------------------------------------------------------------------


def count(neck):
    return sum(p.numel() for p in neck.parameters())


def self_teacher_size(channels, out, depth, constant=False):
    """From the paper: convolutions without bias, two numbers per channel of a BN."""
    n = len(channels)

    def a(c, d):
        return c * d + 2 * d

    def b(d):
        return depth * (9 * d + d * d + 2 * d)

    total = sum(a(c, d) for c, d in zip(channels, out, strict=True))
    total += sum(a(c, d) for c, d in zip(channels[1:], out[1:], strict=True))
    total += sum(b(d) for d in out[:-1]) + sum(b(d) for d in out[1:])
    if not constant:
        total += sum(a(out[i + 1], out[i]) + a(out[i], out[i + 1]) for i in range(n - 1))
    return total + 2 * (n - 1) + 3 * (n - 2) + 2


@pytest.mark.parametrize(
    ('options', 'out', 'expected'),
    [
        (dict(width=1), [64, 128, 256, 512], 1932430),
        (dict(width=2), [128, 256, 512, 1024], 6273294),
        (dict(width=4), [256, 512, 1024, 2048], 22180366),
        (dict(out_channels=256), [256] * 4, 1298958),
    ],
)
def test_parameters_on_resnet18(options, out, expected):
    channels = [64, 128, 256, 512]
    size = self_teacher_size(channels, out, 2, constant='out_channels' in options)
    assert count(BiFPNSelfTeacher(channels, **options)) == size == expected


@pytest.mark.parametrize('depth', [1, 2, 3])
@pytest.mark.parametrize('channels', [[3, 5], [4, 2, 7], [1, 1, 1, 1, 1]])
def test_parameters_of_self_teachers(channels, depth):
    out = [3 * c for c in channels]
    assert count(BiFPNSelfTeacher(channels, 3, depth)) == self_teacher_size(channels, out, depth)


@pytest.mark.parametrize('channels', [64, 88, 112])
def test_parameters_of_pyramids(channels):
    each = 4 * channels  # a factor, a shift, and two of the BN
    teacher = BiFPNSegSelfTeacher(channels)
    assert count(teacher) == each * (6 + 5 + 6)
    student = BiFPN([24, 40, 112, 320], channels)
    lateral = sum(c * channels + 2 * channels for c in (24, 40, 112, 320))
    further = 9 * 320 * channels + 9 * channels**2 + 4 * channels
    assert count(student) == lateral + further + each * 3 * (6 + 5)


# --- messages --------------------------------------------------------------------------------


def test_built_from_config():
    neck = MODELS.build(dict(type='mmkd_plugin.BiFPNSelfTeacher', in_channels=[4, 8], depth=1))
    assert type(neck) is BiFPNSelfTeacher and neck.out_channels == [8, 16]
    neck = MODELS.build(dict(type='mmkd_plugin.BiFPNSegSelfTeacher', channels=4, num_levels=2))
    assert type(neck) is BiFPNSegSelfTeacher and len(neck.layers) == 2
    neck = MODELS.build(dict(type='mmkd_plugin.BiFPN', in_channels=(4,), channels=4))
    assert type(neck) is BiFPN and len(neck.layers) == 3 and neck.out_channels == [4] * 6


@pytest.mark.parametrize(
    ('build', 'error', 'message'),
    [
        (lambda: BiFPNSelfTeacher([4]), ValueError, r'at least two maps, got \[4\]; tap more'),
        (lambda: BiFPNSelfTeacher([]), ValueError, r'at least two maps, got \[\]'),
        (lambda: BiFPNSelfTeacher(64), TypeError, 'in_channels must be a list, .* got 64'),
        (lambda: BiFPNSelfTeacher('64'), TypeError, "in_channels must be a list, .* got '64'"),
        (lambda: BiFPNSelfTeacher([4, 0]), ValueError, 'each of in_channels must be at least 1'),
        (lambda: BiFPNSelfTeacher([4, 2.0]), TypeError, 'each of in_channels must be a whole .* 2'),
        (lambda: BiFPNSelfTeacher([4, 8], width=0), ValueError, 'width must be above 0, got 0'),
        (lambda: BiFPNSelfTeacher([4, 8], depth=10**15), ValueError, 'depth must be at most 1000'),
        (lambda: BiFPN([4], 4, num_layers=10**9), ValueError, 'num_layers must be at most 1000'),
        (lambda: BiFPNSelfTeacher([4, 8], width=-1), ValueError, 'width must be above 0, got -1'),
        (lambda: BiFPNSelfTeacher([4, 8], width='2'), TypeError, "width must be a number, got '2'"),
        (lambda: BiFPNSelfTeacher([4, 8], width=0.2), ValueError, 'width=0.2 leaves no channel of'),
        (lambda: BiFPNSelfTeacher([4, 8], depth=0), ValueError, 'depth must be at least 1, got 0'),
        (lambda: BiFPNSelfTeacher([4, 8], depth=1.0), TypeError, 'depth must be a whole number'),
        (lambda: BiFPNSelfTeacher([4, 8], depth=True), TypeError, 'depth must be a whole number'),
        (lambda: BiFPNSelfTeacher([4, 8], out_channels=0), ValueError, 'out_channels must be at'),
        (lambda: BiFPNSegSelfTeacher(0), ValueError, 'channels must be at least 1, got 0'),
        (lambda: BiFPNSegSelfTeacher([4, 4]), TypeError, r'channels must be a whole .* \[4, 4\]'),
        (lambda: BiFPNSegSelfTeacher(4, 0), ValueError, 'num_layers must be at least 1, got 0'),
        (lambda: BiFPNSegSelfTeacher(4, 2, 1), ValueError, 'num_levels must be at least 2, got 1'),
        (lambda: BiFPN([], 4), ValueError, r'must name 1 to num_levels=6 maps, got \[\]'),
        (lambda: BiFPN([4] * 3, 4, num_levels=2), ValueError, r'num_levels=2 maps, got \[4, 4, 4'),
        (lambda: BiFPN([4], 4, num_levels=1), ValueError, 'num_levels must be at least 2'),
        (lambda: BiFPN([4], 4, num_layers=0), ValueError, 'num_layers must be at least 1'),
        (lambda: BiFPN([4], 0), ValueError, 'channels must be at least 1'),
        (lambda: BiFPN(4, 4), TypeError, 'in_channels must be a list'),
    ],
)
def test_arguments_are_checked(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize(
    ('maps', 'message'),
    [
        (random_maps([3, 4], HALVED), '{name} was built for 3 maps with {own} channels, got 2 with '
         '[3, 4]'),
        (random_maps([3, 4, 6], HALVED), '{name} was built for 3 maps with {own} channels, got 3 '
         'with [3, 4, 6]'),
        ([], '{name} was built for 3 maps with {own} channels, got 0 with []'),
        (torch.rand(1, 3, 4, 4), '{name} was built for 3 maps with {own} channels, got a Tensor; '
         'give a list or tuple of maps'),
        (None, '{name} was built for 3 maps with {own} channels, got a NoneType; give a list or '
         'tuple of maps'),
        ([torch.rand(1, 3), torch.rand(1, 4), None], '{name} was built for 3 maps with {own} '
         "channels, (N, C, H, W) each, got [(1, 3), (1, 4), 'NoneType']"),
    ],
)  # fmt: skip
def test_maps_are_checked(built, maps, message):
    neck, channels = built
    with pytest.raises(ValueError) as error:
        neck(maps)
    assert str(error.value) == message.format(name=type(neck).__name__, own=channels)


def test_maps_of_one_batch(built):
    neck, channels = built
    maps = random_maps(channels, HALVED, dtype=torch.float32)
    maps[1] = maps[1][:1]
    with pytest.raises(ValueError, match=r'channels of one batch, got shapes \[\(2, ') as error:
        neck(maps)
    assert str(tuple(maps[1].shape)) in str(error.value)
