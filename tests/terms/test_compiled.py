"""Losses through torch.compile: the effect on a run, and the way out where it does not work."""

from __future__ import annotations

import copy
import pickle
from shutil import which

import pytest
import torch

from mmkd_plugin.losses import ChannelWiseLoss, HintLoss
from mmkd_plugin.taps import Taps
from mmkd_plugin.terms.compiled import Compiled
from mmkd_plugin.terms.term import Term
from tests import stock_models
from tests.conftest import needs_one_graph
from tests.stock_models import batch, cwd, distiller

NECK = Taps.parse('neck')


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


class Backend:
    """Counts graphs and runs them as they are."""

    def __init__(self, works=True):
        self.graphs, self.calls, self.works = 0, 0, works

    def __call__(self, graph, _):
        self.graphs += 1
        if not self.works:
            raise OSError('no compiler\nhere\nat\nall')

        def run(*args):
            self.calls += 1
            return graph(*args)

        return run


def pair(*shape):
    return torch.rand(*shape, requires_grad=True), torch.rand(*shape)


@needs_one_graph
def test_one_graph_for_the_levels_of_a_pyramid_and_all_scales(log):
    backend = Backend()
    call, loss = Compiled('distill.cwd', backend), ChannelWiseLoss()
    for side in (8, 12, 9, 16):
        levels = [pair(2, 4, side * 2**n, side * 2**n) for n in range(3)]
        value = call(loss, *zip(*levels, strict=True))
        assert value.item() == pytest.approx(loss(*zip(*levels, strict=True)).item())
        value.backward()
    assert backend.graphs == 1 and backend.calls == 4 and not log.warnings


@needs_one_graph
@pytest.mark.skipif(which('g++') is None, reason='there is no compiler')
@pytest.mark.parametrize('loss', [ChannelWiseLoss(), HintLoss()])
def test_compiled_in_earnest(loss, log):
    call = Compiled('distill.t')
    for size in ((8, 8), (9, 12)):
        results = []
        for compare in (call, lambda loss, *maps: loss(*maps)):
            torch.manual_seed(0)
            student, teacher = pair(2, 19, *size)
            value = compare(loss, student, teacher)
            value.backward()
            results.append((value.detach(), student.grad))
        torch.testing.assert_close(results[0], results[1])
    assert not log.warnings


@needs_one_graph
def test_where_it_cannot_be_compiled_it_runs_as_it_is(log):
    backend = Backend(works=False)
    call, loss = Compiled('distill.cwd', backend), ChannelWiseLoss()
    for side in (4, 5):
        maps = pair(2, 3, side, side)
        assert torch.equal(call(loss, *maps), loss(*maps))
    assert backend.graphs == 1 and len(log.warnings) == 1
    start = 'distill.cwd: ChannelWiseLoss is not compiled, it runs as it is. torch.compile said: '
    assert log.warnings[0].startswith(start) and 'no compiler' in log.warnings[0]


def test_where_torch_compile_is_not_supported(log, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError('torch.compile is not supported on Python 9')

    monkeypatch.setattr(torch, 'compile', refuse)
    call, loss, maps = Compiled('distill.cwd'), ChannelWiseLoss(), pair(2, 3, 4, 4)
    assert torch.equal(call(loss, *maps), loss(*maps))
    (said,) = log.warnings
    assert said.endswith('said: RuntimeError: torch.compile is not supported on Python 9')


@needs_one_graph
def test_what_is_wrong_with_the_maps_is_said_by_the_loss(log):
    backend = Backend()
    call, loss = Compiled('distill.cwd', backend), ChannelWiseLoss()
    with pytest.raises(ValueError, match=r'^map sizes differ: student'):
        call(loss, torch.ones(2, 3, 4, 4), torch.ones(2, 3, 5, 4))
    call(loss, *pair(2, 3, 4, 4))
    assert backend.calls == 1 and not log.warnings


@needs_one_graph
def test_copies_compile_anew():
    call, loss = Compiled('distill.cwd', Backend()), ChannelWiseLoss()
    maps = pair(2, 3, 4, 4)
    value = call(loss, *maps)
    for other in (copy.deepcopy(call), pickle.loads(pickle.dumps(call))):
        assert torch.equal(other(loss, *maps), value)
        assert (other.here, other.backend.graphs, call.backend.graphs) == ('distill.cwd', 2, 1)


# Terms --------------------------------------------------------------------------------------------


@needs_one_graph
def test_a_term_compiles_in_training_only():
    term = Term('t', NECK, NECK, ChannelWiseLoss(), compile=True)
    backend = term.compiled.backend = Backend()
    student, teacher = pair(2, 3, 4, 4)
    term.connect(student.detach(), teacher)
    with torch.no_grad():
        expected = term.eval()(student, teacher)
    assert backend.graphs == 0
    assert torch.equal(term.train()(student, teacher), expected)
    assert backend.graphs == 1


def test_connectors_are_trained_through_a_compiled_loss():
    term = Term('t', NECK, NECK, ChannelWiseLoss(), compile=True)
    term.compiled.backend = 'eager'
    student, teacher = torch.rand(2, 3, 8, 8, requires_grad=True), torch.rand(2, 5, 4, 4)
    term.connect(student.detach(), teacher)
    term(student, teacher).backward()
    assert student.grad.any() and all(p.grad.any() for p in term.parameters())


@pytest.mark.parametrize(
    ('line', 'default', 'expected'),
    [
        ({}, False, False),
        ({}, True, True),
        (dict(compile=False), True, False),
        (dict(compile=True), False, True),
    ],
)
def test_a_line_overrides_what_the_distiller_says(line, default, expected):
    line = dict(tap='a', loss=cwd(), **line)
    term = Term.from_config('t', line, ['teacher'], default)
    assert (term.compiled is not None) is expected


def test_compile_is_a_bool():
    line = dict(tap='a', loss=cwd(), compile='yes')
    with pytest.raises(ValueError, match=r"^distill\.t.compile must be True or False, got 'yes'$"):
        Term.from_config('t', line, ['teacher'])
    with pytest.raises(ValueError, match=r'^compile must be True or False, got 1$'):
        distiller(stock_models.pspnet(), stock_models.pspnet(16), TWO, compile=1)


# In a Distiller -----------------------------------------------------------------------------------

TWO = dict(
    cwd=dict(tap='decode_head.conv_seg', loss=cwd(tau=4, loss_weight=3)),
    hint=dict(tap='backbone', loss=dict(type='mmkd_plugin.HintLoss'), compile=False),
)


@needs_one_graph
def test_a_compiled_run_gives_the_same_and_is_stored_the_same():
    compiled, plain = (
        distiller(stock_models.pspnet(), stock_models.pspnet(16), TWO, compile=value)
        for value in (True, False)
    )
    plain.load_state_dict(compiled.state_dict())
    keys = list(compiled.state_dict()), [name for name, _ in compiled.named_modules()]
    assert [term.compiled is None for term in compiled.distill.values()] == [False, True]
    backend = compiled.distill['cwd'].compiled.backend = Backend()
    inputs, samples = batch(plain)
    torch.manual_seed(0)
    expected = plain(inputs, samples, mode='loss')
    torch.manual_seed(0)
    losses = compiled(inputs, samples, mode='loss')
    assert backend.graphs == 1
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    assert keys == (list(compiled.state_dict()), [name for name, _ in compiled.named_modules()])
    for other in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled.distill))):
        term = getattr(other, 'distill', other)['cwd']
        assert term.compiled is not compiled.distill['cwd'].compiled
        assert term.loss is not compiled.distill['cwd'].loss
