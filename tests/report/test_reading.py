"""A run is read whole from its work dir, whatever happened on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmkd_plugin.cli import UsageError
from mmkd_plugin.report import read_run
from tests.report.runs import distilled, row, scored, session


def test_rows_and_scores(tmp_path: Path) -> None:
    rows = [row(10), row(20), scored(20, 30.0), row(30), row(40), scored(40, 35.0)]
    run = read_run(session(tmp_path / 'a', rows, train_cfg=dict(max_iters=40)))
    assert run.name == 'a' and not run.is_distilled
    assert run.logged('loss') == ([10, 20, 30, 40], [1.0, 0.5, pytest.approx(1 / 3), 0.25])
    assert run.metric == 'mIoU' and run.curve('mIoU') == ([20, 40], [30.0, 35.0])
    assert run.score('mIoU') == 35.0 and (run.iterations, run.planned) == (40, 40)
    assert run.mean('time') == pytest.approx(0.2) and run.mean('memory') is None


def test_a_resumed_run_forgets_what_was_lost(tmp_path: Path) -> None:
    first = [row(10, loss=1.0), row(20, loss=1.0), scored(20, 30.0), row(30, loss=1.0)]
    session(tmp_path, first, facts=dict(seed=1))
    then = [row(20, loss=2.0), scored(20, 31.0), row(30, loss=2.0)]
    session(tmp_path, then, name='20260102_000000', facts=dict(seed=2))
    run = read_run(tmp_path)
    assert run.logged('loss') == ([10, 20, 30], [1.0, 2.0, 2.0])
    assert run.curve('mIoU') == ([20], [31.0])
    assert run.facts == dict(seed=2) and len(run.folders) == 2


def test_epochs_become_iterations(tmp_path: Path) -> None:
    rows = [row(5, epoch=1), row(10, epoch=1), scored(1, 20.0), row(15, epoch=2), row(20, epoch=2)]
    run = read_run(session(tmp_path, [*rows, scored(2, 25.0)]))
    assert run.curve('mIoU') == ([10, 20], [20.0, 25.0])


def test_validations_of_a_run_by_iterations_that_are_logged_by_epochs(tmp_path: Path) -> None:
    """mmengine's default: the step of each validation is 0, the epoch of such a run."""
    rows = [row(5, epoch=1), scored(0, 20.0), row(10, epoch=1), scored(0, 25.0), scored(0, 22.0)]
    by_interval = dict(train_cfg=dict(max_iters=14, val_interval=6))
    run = read_run(session(tmp_path / 'a', rows, **by_interval))
    assert run.curve('mIoU') == ([6, 12, 14], [20.0, 25.0, 22.0]) and run.iterations == 14
    noted = dict(by_interval, facts=dict(validations=[7, 11, 13]))
    assert read_run(session(tmp_path / 'b', rows, **noted)).curve('mIoU')[0] == [7, 11, 13]
    killed = dict(by_interval, facts=dict(validations=[7, 11]))
    assert read_run(session(tmp_path / 'c', rows, **killed)).curve('mIoU')[0] == [7, 11, 12]
    others = dict(by_interval, facts=dict(validations=[7]))  # another hook logs more
    assert read_run(session(tmp_path / 'd', rows, **others)).curve('mIoU')[0] == [6, 12, 14]
    run = read_run(session(tmp_path / 'e', rows))
    assert run.curve('mIoU')[0] == [5, 10, 11]


def test_iterations_after_the_last_that_is_logged(tmp_path: Path) -> None:
    """12 iterations with a log every 5."""
    rows, long = [row(5), row(10)], dict(train_cfg=dict(max_iters=12))
    run = read_run(session(tmp_path / 'killed', rows, facts=dict(seed=1), **long))
    assert (run.iterations, run.planned, run.ended) == (10, 12, False)
    run = read_run(session(tmp_path / 'ended', rows, facts=dict(iterations=12), **long))
    assert (run.iterations, run.ended) == (12, True)


@pytest.mark.parametrize(('written_by', 'iterations'), [('20260101_000000', 12), ('2025', 10)])
def test_the_last_checkpoint_tells_how_far_a_run_came(
    tmp_path: Path, written_by: str, iterations: int
) -> None:
    """Without our hook; a checkpoint of an earlier run in the same folder tells nothing."""
    session(tmp_path, [row(5), row(10)], train_cfg=dict(max_iters=12))
    meta = dict(iter=12, experiment_name=f'own_{written_by}')
    torch.save(dict(meta=meta, state_dict=dict(weight=torch.zeros(1))), tmp_path / 'iter_12.pth')
    (tmp_path / 'last_checkpoint').write_text('/moved/since/iter_12.pth')
    assert read_run(tmp_path).iterations == iterations


def test_a_run_of_which_nothing_is_logged(tmp_path: Path) -> None:
    session(tmp_path, [], facts=dict(iterations=4), train_cfg=dict(max_iters=4))
    (tmp_path / '20260101_000000/vis_data/scalars.json').unlink()
    assert read_run(tmp_path).iterations == 4


def test_a_session_that_logged_nothing_takes_nothing_away(tmp_path: Path) -> None:
    session(tmp_path, [row(10), row(20)])
    session(tmp_path, [], name='20260102_000000')
    assert read_run(tmp_path).iterations == 20


def test_the_best_checkpoint_says_which_score_counts(tmp_path: Path) -> None:
    hooks = dict(checkpoint=dict(save_best='aAcc'))
    run = read_run(session(tmp_path, [row(1), scored(1, 20.0)], default_hooks=hooks))
    assert run.metric == 'aAcc'


def test_what_a_kill_leaves(tmp_path: Path) -> None:
    session(tmp_path, [row(10), row(20)])
    with (tmp_path / '20260101_000000/vis_data/scalars.json').open('a') as file:
        file.write('{"loss": 1.0, "it')
    (tmp_path / '20260101_000000/run.json').write_text('{"seed"')
    run = read_run(tmp_path)
    assert run.iterations == 20 and run.facts == {} and run.metric is None


def test_warnings_of_the_distillation(tmp_path: Path) -> None:
    log = (
        '2026/01/01 00:00:00 - mmengine - WARNING - "FileClient" will be deprecated\n'
        '2026/01/01 00:00:00 - mmengine - WARNING - distill.cwd drowns the task loss: why\n'
    )
    run = read_run(session(tmp_path, [row(1)], distilled(), log=log * 2))
    assert run.warnings == ['distill.cwd drowns the task loss: why']


@pytest.mark.parametrize(
    ('make', 'told'),
    [
        (lambda at: at / 'none', 'there is no folder'),
        (lambda at: at, 'is not the work dir of a run'),
        (lambda at: session(at / 'inner', [row(1)]).parent, 'it holds the work dirs inner'),
        (lambda at: session(at / 'empty', []), 'nothing is logged there yet'),
    ],
)
def test_what_is_no_run_is_told_in_a_line(tmp_path: Path, make, told: str) -> None:
    with pytest.raises(UsageError, match=told) as error:
        read_run(make(tmp_path))
    assert '\n' not in str(error.value)
