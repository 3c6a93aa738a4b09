"""A run finds its student alone and its teacher, and its place between them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmkd_plugin.report.reading import read_run
from mmkd_plugin.report.standing import Score, Standing, standing_of
from tests.report.runs import STUDENT, distilled, row, scored, session

WEIGHTS = dict(weight=torch.zeros(1))


def test_other_work_dirs_tell_the_scores(tmp_path: Path) -> None:
    alone = read_run(session(tmp_path / 'alone', [row(1), scored(1, 50.0)]))
    wider = dict(STUDENT, backbone=dict(type='ResNet', depth=50))
    teacher = read_run(session(tmp_path / 'teacher', [row(1), scored(1, 70.0)], wider))
    model = distilled(str(tmp_path / 'teacher/iter_1.pth'))
    run = read_run(session(tmp_path / 'run', [row(1), scored(1, 60.0)], model))
    found = standing_of(run, [run, teacher, alone])
    assert found == Standing(
        'mIoU', 60.0, Score(50.0, str(alone.folder)), Score(70.0, str(teacher.folder))
    )
    assert found.gain == 10.0 and found.share == 0.5
    assert standing_of(alone, [run, teacher, alone]) is None


def test_the_checkpoint_of_the_teacher_tells_its_score(tmp_path: Path) -> None:
    file = tmp_path / 'teacher.pth'
    scores = {'val/mIoU': HistoryBuffer([10.0, 70.0], [1, 1])}
    torch.save(dict(state_dict=WEIGHTS, message_hub=dict(log_scalars=scores)), file)
    run = read_run(session(tmp_path / 'run', [row(1), scored(1, 60.0)], distilled(str(file))))
    assert standing_of(run, [run]).teacher == Score(70.0, str(file))
    torch.save(dict(state_dict=WEIGHTS), file)
    assert standing_of(run, [run]).teacher is None


def test_the_work_dir_around_the_teacher_tells_its_score(tmp_path: Path) -> None:
    rows = [row(1), scored(1, 65.0), row(2), scored(2, 70.0)]
    folder = session(tmp_path / 'teacher', rows, STUDENT)
    for name, score in (('iter_1', 65.0), ('iter_2', 70.0), ('best', 70.0)):
        file = folder / f'{name}.pth'
        torch.save(dict(state_dict=WEIGHTS), file)
        model = distilled(str(file))
        run = read_run(session(tmp_path / name, [row(1), scored(1, 60.0)], model))
        assert standing_of(run, [run]).teacher == Score(score, str(folder))


def test_scores_that_are_given(tmp_path: Path) -> None:
    run = read_run(session(tmp_path, [row(1), scored(1, 60.0)], distilled()))
    found = standing_of(run, [run], alone=55.0, teacher=65.0)
    assert found.share == 0.5 and found.alone.source == '--alone'
    assert standing_of(run, [run], alone=55.0).share is None
    assert standing_of(run, [run], alone=55.0, teacher=50.0).share is None


def test_without_a_validation(tmp_path: Path) -> None:
    run = read_run(session(tmp_path, [row(1)], distilled()))
    assert standing_of(run, [run], alone=pytest.approx(1)) is None
