"""Taps: what they read, what they refuse."""

import pytest
import torch
from torch import nn

from mmkd_plugin.taps import Tap, TapReader, describe, find_module


class Shared(nn.Module):
    """A head that runs once per level, and a block whose ReLU writes in place."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Conv2d(4, 2, 1)
        self.pair = Pair()
        self.unused = nn.Conv2d(4, 2, 1)
        self.ran = []

    def forward(self, x):
        self.ran = ['conv']
        features = self.relu(self.norm(self.conv(x)))
        levels = [features, features[:, :, ::2, ::2]]
        outputs = [self.head(level) for level in levels]
        self.ran.append('head')
        self.pair(features, scale=2)
        self.ran.append('pair')
        return outputs


class Pair(nn.Module):
    def forward(self, x, scale):
        return {'x': x} if scale == 3 else (x * scale, [x + 1, x + 2])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Shared().eval()


def read(model, text, **kwargs):
    tap = Tap.parse(text)
    with TapReader(model, [tap], **kwargs) as reader:
        model(torch.ones(1, 3, 4, 4))
    return reader.read(tap)


@pytest.mark.parametrize(
    'text', ['neck', 'a.b.0.c', 'neck[2]', 'a[1][-2]', 'a.b@input', 'a[0]@input']
)
def test_text_and_back(text):
    assert str(Tap.parse(text)) == text


def test_output_is_the_default():
    assert Tap.parse('a@output') == Tap.parse('a')


@pytest.mark.parametrize('text', ['', 'a[x]', 'a@nowhere', 'a[0].b', 'a b', None])
def test_other_forms_are_refused(text):
    with pytest.raises(ValueError, match='is not a tap: expected'):
        Tap.parse(text)


def test_output_and_input(model):
    x = torch.ones(1, 3, 4, 4)
    assert torch.equal(read(model, 'conv@input'), x)
    assert torch.equal(read(model, 'conv'), model.conv(x))


def test_a_module_that_runs_several_times_gives_a_sequence(model):
    maps = read(model, 'head')
    assert [tuple(m.shape) for m in maps] == [(1, 2, 4, 4), (1, 2, 2, 2)]
    assert torch.equal(read(model, 'head[1]'), maps[1])
    assert torch.equal(read(model, 'head[-1]'), maps[1])


def test_nested_sequences(model):
    assert len(read(model, 'pair')) == 3
    assert len(read(model, 'pair[1]')) == 2
    assert read(model, 'pair[1][0]').shape == (1, 4, 4, 4)


def test_what_the_module_gave_survives_an_in_place_relu(model):
    expected = model.norm(model.conv(torch.ones(1, 3, 4, 4)))
    assert (expected < 0).any()
    tap = Tap.parse('norm')
    with TapReader(model, [tap]) as reader:
        model(torch.ones(1, 3, 4, 4))
    assert reader.changed_in_place(tap)
    with pytest.raises(RuntimeError, match="'norm' read was overwritten in place"):
        reader.read(tap)
    assert torch.equal(read(model, 'norm', clone=[tap]), expected)
    relu = Tap.parse('relu@input')
    assert torch.equal(read(model, 'relu@input', clone=[relu]), expected)


def test_gradient_flows_through_a_copied_tap(model):
    tap = Tap.parse('norm')
    with TapReader(model, [tap], clone=[tap]) as reader:
        model(torch.ones(1, 3, 4, 4))
    reader.read(tap).sum().backward()
    assert model.conv.weight.grad is not None and model.head.weight.grad is None


def test_the_forward_ends_with_the_last_tap(model):
    tap = Tap.parse('head')
    with TapReader(model, [tap], stop_after={tap: 2}) as reader:
        model(torch.ones(1, 3, 4, 4))
    assert len(reader.read(tap)) == 2
    assert model.ran == ['conv']


def test_other_exceptions_pass_and_hooks_go(model):
    with pytest.raises(ZeroDivisionError), TapReader(model, [Tap.parse('conv')]):
        raise ZeroDivisionError
    assert not model.conv._forward_hooks
    with TapReader(model, [Tap.parse('conv'), Tap.parse('conv@input')]):
        assert model.conv._forward_hooks and model.conv._forward_pre_hooks
    assert not model.conv._forward_hooks and not model.conv._forward_pre_hooks


def test_a_recomputed_module_is_read_once(model):
    tap = Tap.parse('conv')
    x = torch.ones(1, 3, 4, 4, requires_grad=True)
    with TapReader(model, [tap]) as reader:
        out = torch.utils.checkpoint.checkpoint(model.conv, x, use_reentrant=False)
    out.sum().backward()
    assert reader.calls(tap) == 1


def test_a_tap_that_did_not_run(model):
    with pytest.raises(ValueError, match="tap 'unused' did not run"):
        read(model, 'unused')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('head[2]', r"tap 'head\[2\]' has no element \[2\]: it gives 2 elements"),
        ('conv[0]', r"tap 'conv\[0\]' has no element \[0\]: it gives one tensor \(1, 4, 4, 4\)"),
        ('pair@input', r'gives tuple of \[tensor \(1, 4, 4, 4\), int\], not a tensor'),
    ],
)
def test_wrong_elements(model, text, message):
    model.pair.forward = Pair.forward.__get__(model.pair)
    if text == 'pair@input':
        model.forward = lambda x: model.pair(model.conv(x), 2)
    with pytest.raises(ValueError, match=message):
        read(model, text)


@pytest.mark.parametrize(
    ('output', 'message'),
    [
        (dict(x=1), r"tap 'conv' gives dict, .*; name a module inside it$"),
        (
            ['a'],
            r"tap 'conv' gives .*; name a module inside it, or an element such as 'conv\[0\]'$",
        ),
    ],
)
def test_an_output_that_holds_no_maps(output, message, model):
    model.conv.register_forward_hook(lambda *_: output)
    model.forward = model.conv.__call__
    with pytest.raises(ValueError, match=message):
        read(model, 'conv')


def test_wrong_path_names_the_closest_and_the_children():
    deep = nn.Module()
    deep.decode_head = nn.Module()
    deep.decode_head.conv_seg = nn.Conv2d(1, 1, 1)
    deep.decode_head.bottleneck = nn.Conv2d(1, 1, 1)
    with pytest.raises(ValueError) as error:
        find_module(deep, Tap.parse('decode_head.cls_seg'), 'the student')
    assert str(error.value) == (
        "the student has no module 'decode_head.cls_seg'. Closest: decode_head.conv_seg. "
        "'decode_head' contains: conv_seg, bottleneck."
    )
    for path, message in {
        'conv_seg': r'Closest: decode_head\.conv_seg\. It contains: decode_head\.$',
        'decode_head.conv_seg.x': r"contains no modules; take 'decode_head\.conv_seg' itself, or ",
    }.items():
        with pytest.raises(ValueError, match=message):
            find_module(deep, Tap.parse(path), 'the student')


def test_describe():
    assert describe((torch.ones(2, 3), {'a': 1})) == 'tuple of [tensor (2, 3), dict]'
