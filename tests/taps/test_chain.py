"""Chains: the modules between two places of a model, by the tensors that they pass on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmkd_plugin.taps import Taps
from mmkd_plugin.taps.chain import chains_between, check_chains, names_in, run_chains


class Block(nn.Sequential):
    def __init__(self, *channels):
        super().__init__()
        self.conv = nn.Conv2d(*channels, 1)
        self.act = nn.ReLU(inplace=True)


class Head(nn.Module):
    """Two branches that run for two levels, with a scale for each level."""

    def __init__(self):
        super().__init__()
        self.stem = Block(3, 4)
        self.cls = nn.ModuleList([Block(4, 4), Block(4, 4)])
        self.reg = nn.ModuleList([Block(4, 4), Block(4, 4)])
        self.scores, self.boxes = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 5, 1)
        self.scales = nn.ModuleList([nn.Conv2d(5, 5, 1), nn.Conv2d(5, 5, 1)])
        self.late = nn.Conv2d(2, 2, 1)

    def forward(self, x):
        levels = [self.stem(x), self.stem(x[..., ::2, ::2])]
        for x, scale in zip(levels, self.scales):
            c, r = x, x
            for conv in self.cls:
                c = conv(c)
            for conv in self.reg:
                r = conv(r)
            self.late(F.relu(self.scores(c)))
            scale(self.boxes(r))


@pytest.fixture
def head():
    torch.manual_seed(0)
    return Head().eval()


def chains(model, start, end):
    start, end = Taps.parse(start), Taps.parse(end)
    forward = lambda: model(torch.rand(1, 3, 4, 4))  # noqa: E731
    return chains_between(model, start, end, forward, {}, 'the head')


@pytest.mark.parametrize(
    ('start', 'end', 'expected'),
    [
        ('cls.0', 'scores', ['cls.1', 'scores']),
        ('cls.0.act@input', 'scores', ['cls.0.act', 'cls.1', 'scores']),
        ('cls.0.conv', 'cls.1.act', ['cls.0.act', 'cls.1.conv', 'cls.1.act']),
        ('cls.0.act', 'cls.1', ['cls.1']),
        ('stem', 'boxes', ['reg.0', 'reg.1', 'boxes']),
        ('boxes@input', 'boxes', ['boxes']),
        ('stem', 'scores@input', ['cls.0', 'cls.1']),
    ],
)
def test_the_outermost_modules_of_one_branch(head, start, end, expected):
    """An activation in place gives the tensor that it took, so order tells its sides apart."""
    assert chains(head, start, end) == [(0, tuple(expected)), (1, tuple(expected))]


def test_levels_have_modules_of_their_own(head):
    found = chains(head, 'reg.1', ['scales.0', 'scales.1'])
    assert found == [(0, ('boxes', 'scales.0')), (1, ('boxes', 'scales.1'))]
    assert names_in(found) == ['boxes', 'scales.0', 'scales.1']


def test_several_places(head):
    found = chains(head, ['cls.1', 'reg.1'], ['scores', 'boxes'])
    assert found == [(0, ('scores',)), (1, ('scores',)), (2, ('boxes',)), (3, ('boxes',))]


def test_more_come_out_than_go_in_and_what_they_share_runs_once(head):
    """One map ends where another one goes on; the order of the places does not matter."""
    found = chains(head, ['cls.0', 'reg.1'], ['scores', 'boxes', 'cls.1', 'scales.0'])
    assert [chain.start for chain in found] == [0, 1, 2, 3, 0, 1, 2]
    maps, ran = [torch.rand(2, 4, 3, 3) for _ in range(4)], []
    for name in ('cls.1', 'boxes'):
        head.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    with torch.no_grad():
        made = run_chains(head, found, [x.clone() for x in maps])
        assert sorted(ran) == ['boxes'] * 2 + ['cls.1'] * 2
        features, boxes = head.cls[1](maps[0].clone()), head.boxes(maps[2])
        expected = [head.scores(features), boxes, features, head.scales[0](boxes)]
    for ours, theirs in zip([made[i] for i in (0, 2, 4, 6)], expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_chain_gives_what_the_model_gives(head):
    x = torch.rand(2, 4, 3, 3)
    with torch.no_grad():
        found = run_chains(head, chains(head, 'cls.0', 'scores')[:1], [x.clone()])[0]
        torch.testing.assert_close(found, head.scores(head.cls[1](x.clone())))


@pytest.mark.parametrize(
    ('start', 'end'),
    [
        ('scores', 'late'),  # a function lies between
        ('cls.0', 'boxes'),  # another branch
        ('scores', 'cls.0'),  # the other way round
        ('scores', 'scores'),  # nothing lies between
        (['cls.0', 'reg.0'], ['scores', 'scores']),  # nothing comes of one of them
    ],
)
def test_places_that_no_modules_connect(head, start, end):
    words = 'the head: no modules lead from ' + ' to '.join(
        ', '.join(f"'{one}'" for one in ([x] if isinstance(x, str) else x)) for x in (start, end)
    )
    with pytest.raises(ValueError, match=words):
        chains(head, start, end)


def test_other_numbers_of_maps(head):
    with pytest.raises(ValueError, match=r"the head has 2 maps at 'boxes' and 1 at 'scales.0'"):
        chains(head, 'boxes', 'scales.0')


class Changed(nn.Module):
    """A model that changes a tensor in place without a module."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.b(self.a(x).mul_(2))


def test_what_happens_between_modules_is_found_by_a_trial():
    model, x = Changed().eval(), torch.rand(1, 3, 4, 4)
    found = chains_between(model, *map(Taps.parse, 'ab'), lambda: model(x), {}, 'the model')
    with torch.no_grad():
        maps = [model.a(x)], [model(x)]
    with pytest.raises(ValueError, match="no modules lead from 'a' to 'b'"):
        check_chains(model, found, *maps, *map(Taps.parse, 'ab'), 'the model')
