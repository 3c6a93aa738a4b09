"""Programs that are killed at any of their file operations: the same command goes on.

``make test-faults`` tries every state in which a kill can leave the files; the suite a few of them,
drawn with a fixed seed.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.attacks.harness import fork
from tests.faults import cases
from tests.faults.cases import Case
from tests.faults.tracing import State, needs_tracing, not_flushed, trace
from tests.runs import assert_same

pytestmark = [needs_tracing, pytest.mark.usefixtures('own_globals')]

#: Programs, and how many states of each the suite tries: twenty in all.
CASES: dict[str, tuple[Callable[[Path, Path], Case], int]] = {
    'training': (cases.training, 4),
    'training in two processes': (cases.training_in_two_processes, 1),
    'paraphraser': (cases.paraphraser, 1),
    'distill': (cases.distill, 1),
    'cache': (cases.cache, 1),
    'cache of views': (lambda *to: cases.cache(*to, '--views', 2), 1),
    'export': (cases.export, 1),
    'export as safetensors': (lambda *to: cases.export(*to, '.safetensors'), 1),
    'export as ONNX': (cases.onnx, 1),
    'MMRazor': (cases.from_mmrazor, 1),
    "MMRazor's config": (cases.mmrazor_config, 1),
    'fit_connector': (cases.fit_connector, 1),
    'report': (cases.report, 1),
    'visualize': (cases.visualize, 1),
    'predictions': (cases.predictions, 1),
    'BCCD': (cases.bccd, 1),
    'CamVid': (cases.camvid, 1),
    'DigitScenes': (cases.digit_scenes, 1),
    'reproduce': (cases.reproduce, 0),  # these two train several times
    'demo': (cases.demo, 0),
    'all of reproduce': (cases.whole_reproduce, 0),  # and these many times
    'all of the demo': (cases.whole_demo, 0),
}

#: How many states of a program are tried at most, where each takes minutes.
AT_MOST = {'all of reproduce': 6, 'all of the demo': 6}

#: States of each program: a number, 'all', or '' for those above.
ASKED = os.environ.get('FAULTS', '')


def some_of(states: Sequence[State], count: int, at_most: int | None = None) -> list[State]:
    """The states that are tried: a few of them, or all."""
    count = len(states) if ASKED == 'all' else min(int(ASKED or count), len(states))
    count = min(count, at_most or count)
    chosen = random.Random(0).sample(range(len(states)), count)
    return [states[number] for number in sorted(chosen)]


@pytest.mark.parametrize('name', CASES)
def test_killed_anywhere(name: str, data: Path, tmp_path: Path) -> None:
    make, count = CASES[name]
    if not (ASKED or count):
        pytest.skip('takes long; make test-faults runs it')
    case = make(tmp_path, data)
    run = trace(case.run, case.folder, tmp_path / 'logs', case.ignored)
    assert run.ending.status == 0, run.ending.log
    assert not not_flushed(run.operations)
    expected, far, faults = case.outcome(), 0, []
    for state in some_of(run.states, count, AT_MOST.get(name)):
        run.restore(state, case.folder)
        before, far = far, case.check()
        assert far >= before, f'{state.label}: something good is gone'
        again = None if case.refused() else fork(case.again, tmp_path / 'logs')
        if again is not None and again.status != 0:
            faults.append(f'{state.label}: {again.message}')
            continue
        try:
            assert_same(case.outcome(), expected)
        except AssertionError as error:
            faults.append(f'{state.label}: ends with another {error}')
    assert not faults, '\n'.join(faults)
