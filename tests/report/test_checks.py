"""Each check finds what it is for, says what to do, and is silent about a good run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mmkd_plugin.report.checks import findings
from mmkd_plugin.report.reading import read_run
from mmkd_plugin.report.standing import standing_of
from tests.report.runs import distilled, row, scored, session

GOOD = [row(i, **{'distill.cwd.loss': 1.0, 'distill.cwd.share': 2.5}) for i in range(10, 110, 10)]
SCORES = [scored(20, 30.0), scored(40, 49.0), scored(60, 50.0), scored(80, 50.5), scored(100, 50.6)]
PARTS = dict(teachers=6.0, student=2.0, terms=2.0)
LOG = '2026/01/01 00:00:00 - mmengine - WARNING - distill.cwd teaches next to nothing: small\n'


def changed(**values: float) -> list[dict[str, float]]:
    return [one | values for one in GOOD]


def found(folder: Path, rows: list[dict[str, float]], **more: Any) -> list:
    teacher, alone = more.pop('teacher', 60.0), more.pop('alone', 40.0)
    more.setdefault('train_cfg', dict(max_iters=100))
    run = read_run(session(folder, rows, distilled(), **more))
    return findings(run, standing_of(run, [run], alone, teacher))


def test_a_good_run(tmp_path: Path) -> None:
    good = found(tmp_path, GOOD + SCORES)
    assert all(one.good for one in good)
    assert [one.text for one in good] == [
        'mIoU is +10.60 against the student alone, 53% of the gap. One seed says little about a '
        'small gain.',
        "The gradient of cwd is 2.5 of the task's.",
    ]


def test_two_measured_steps_are_too_few_for_an_advice(tmp_path: Path) -> None:
    few = found(tmp_path, GOOD + SCORES, facts=dict(parts=PARTS, measured_steps=2))
    assert all(one.good for one in few)


def test_a_run_that_stopped_by_itself_has_ended(tmp_path: Path) -> None:
    """An EarlyStoppingHook stops before the last iteration."""
    facts = dict(iterations=50)
    assert all('iterations' not in one.text for one in found(tmp_path, GOOD[:5], facts=facts))


@pytest.mark.parametrize(
    ('case', 'text', 'advice'),
    [
        (dict(rows=GOOD[:5]), 'The run has 50 of 100 iterations', '--resume'),
        (dict(alone=55.0), 'mIoU is -4.40 against the student alone', "loss_weight='auto'"),
        (dict(teacher=39.0), 'The teacher has -1.00 mIoU', 'take a better teacher'),
        (
            dict(rows=[*GOOD, scored(50, 60.0), scored(70, 50.0), scored(100, 40.0)], alone=30.0),
            'mIoU was 60.00 at iteration 50',
            "save_best='mIoU'",
        ),
        (
            dict(rows=[*GOOD, scored(20, 20.0), scored(60, 41.0), scored(100, 60.0)]),
            'mIoU still rises',
            'longer',
        ),
        (dict(rows=changed(loss=math.nan)), 'loss was nan at iteration 10', 'learning rate'),
        (dict(rows=changed(data_time=0.15)), '75% of a step waits for data', 'num_workers'),
        (dict(rows=changed(**{'distill.cwd.loss': 0.0})), 'was 0 all the time', 'schedule'),
        (dict(rows=changed(**{'distill.cwd.share': 1e-3})), 'next to nothing', 'auto=2.5'),
        (dict(rows=changed(**{'distill.cwd.share': 500.0})), 'nearly everything', 'auto=2.5'),
        (
            dict(facts=dict(parts=PARTS, measured_steps=3)),
            'The teachers take 60% of a step',
            'cache_teacher',
        ),
        (dict(log=LOG), 'distill.cwd teaches next to nothing: small', ''),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_what_is_wrong_comes_first(
    tmp_path: Path, case: dict[str, Any], text: str, advice: str
) -> None:
    first, *others = found(tmp_path, case.pop('rows', GOOD + SCORES), **case)
    assert not first.good and text in first.text and advice in first.advice
    assert all(one.good for one in others)
