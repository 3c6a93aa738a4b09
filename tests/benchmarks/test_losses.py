"""Measuring losses: what is compared, counted and left out."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from benchmarks import cases, losses, measure
from tests.conftest import needs_one_graph

CPU = torch.device('cpu')


def settings(**changes) -> losses.Settings:
    return replace(losses.Settings(CPU, 0, compiled=False, memory=2**30), **changes)


def case_of(loss: str) -> cases.Case:
    return cases.pick([loss], quick=True)[0]


def test_a_loss_with_modules_is_measured():
    found = losses.measure(case_of('MaskedGenerationLoss'), settings())
    assert losses.EAGER in found.seconds


def test_every_form_takes_its_turns():
    found = losses.measure(case_of('HintLoss'), settings())
    assert {len(values) for values in found.seconds.values()} == {3}
    assert {losses.TEXTBOOK, losses.EAGER, losses.FLOOR} <= set(found.seconds)


def test_turns_begin_with_another_form_each_round(monkeypatch):
    monkeypatch.setattr(measure, 'SHORTEST', 0)
    order = []
    calls = {name: lambda name=name: order.append(name) for name in 'abc'}
    measure.take_turns(calls, CPU, budget=0, least_rounds=3)
    assert order == [*'abc', *'bca', *'cab']


def test_short_calls_are_repeated():
    count = []
    times = iter(range(10**6))
    found = measure.take_turns(
        {'a': lambda: count.append(1)}, CPU, 0, clock=lambda: next(times) * 0.004, least_rounds=1
    )
    assert len(count) == 1 + 5 and found == {'a': [pytest.approx(0.004 / 5)]}


def test_a_form_of_another_value_is_not_timed():
    case = case_of('HintLoss')
    wrong = replace(case, competitor=lambda s, t: case.textbook()(s, t) * 1.1)
    found = losses.measure(wrong, settings())
    assert losses.TEXTBOOK not in found.seconds
    assert found.notes[losses.TEXTBOOK] == 'not timed: differs from ours by 0.1'


def test_a_form_that_fails_does_not_end_the_run():
    def broken(s, t):
        raise RuntimeError('out of\nmemory')

    wrong = replace(case_of('HintLoss'), competitor=broken)
    assert losses.measure(wrong, settings()).notes[losses.TEXTBOOK] == 'failed: out of'


def test_what_needs_too_much_memory_is_said():
    (one, *_) = (case for case in cases.pick(['PairWiseLoss']) if case.where == 'features')
    found = measure.Rounds('', '')
    forms = losses.forms_of(one, settings(memory=4 * 2**30), found)
    assert losses.TEXTBOOK not in forms and losses.EAGER in forms
    assert found.notes[losses.TEXTBOOK].startswith('not run: needs ')


def test_bytes_that_live_at_once_are_counted():
    with measure.PeakBytes() as counter:
        a = torch.zeros(1000)
        b = a + 1
        del a
        b.view(10, 100)
        c = b * 2  # noqa: F841
        del b
    assert counter.peak == 2 * 4000


def test_traffic_is_two_reads_and_a_write():
    inputs = case_of('IntraClassVariationLoss').inputs()
    maps = inputs.student.numel() * 4
    assert losses.traffic(inputs) == 3 * maps + inputs.others[0].numel() * 8


@needs_one_graph
@pytest.mark.skipif(not shutil.which('g++'), reason='there is no C++ compiler')
def test_a_compiled_loss_is_measured_too():
    found = losses.measure(case_of('HintLoss'), settings(compiled=True))
    assert losses.COMPILED in found.seconds
    assert found.extra['compile seconds'] > 0
