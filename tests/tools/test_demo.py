"""The demo, from data to report, with runs of two iterations."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from rich.console import Console

from benchmarks.gains.training import Processes, RunError, make_digit_scenes
from mmkd_plugin.cli import read_config
from tests.forks import Forked
from tests.tools.tool_runs import load_tool, save_random_weights

ROOT = Path(__file__).resolve().parents[2]

STUDENT = """
_base_ = '{root}/configs/digit_scenes/fpn_r18-w16_1k_digit-scenes-128x128.py'
train_cfg = dict(max_iters=2, val_interval=1)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(indices=4))
test_dataloader = val_dataloader
default_hooks = dict(checkpoint=dict(interval=1), logger=dict(interval=1))
"""
DISTILLED = """
_base_ = './student.py'
model = dict(
    _delete_=True, type='mmkd_plugin.Distiller', student={{{{_base_.model}}}},
    teacher=dict(config='{folder}/student.py', checkpoint='given by the demo'),
    distill=dict(cwd=dict(tap='decode_head.conv_seg',
                          loss=dict(type='mmkd_plugin.ChannelWiseLoss'))))
"""


@pytest.fixture(scope='module')
def demo():
    return load_tool('demo')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('demo')
    (folder / 'student.py').write_text(STUDENT.format(root=ROOT))
    (folder / 'distilled.py').write_text(DISTILLED.format(folder=folder))
    return folder


def run(demo, folder, monkeypatch, seed=0, **settings):
    monkeypatch.setattr(Processes, 'start', Forked.start)  # trainings find the libraries imported
    few = ['--train', '12', '--val', '4']  # in place of 700 scenes
    monkeypatch.setattr(demo, 'make_digit_scenes', lambda: load_tool('make_digit_scenes').main(few))
    student = str(folder / 'student.py')
    task = demo.Task(
        student, student, str(folder / 'distilled.py'), 'mIoU', 'mIoU', 1, batch_size=2, **settings
    )
    monkeypatch.chdir(folder)
    console = Console(record=True, width=100)
    demo.run_demo('segmentation', task, folder / 'work', seed, console)
    return console.export_text()


def test_from_nothing_to_the_report_and_again(demo, folder, monkeypatch):
    text = run(demo, folder, monkeypatch)
    for name in ('teacher', 'student alone', 'distilled student'):
        assert re.search(rf'{name} +│ +\d+\.\d\d │ +0\.80 M │ +\d+\.\d min │ +\d+ s', text)
    assert 'no gap to close' in text  # the teacher is the student's own config here
    with Image.open(folder / 'work' / 'report.png') as picture:
        assert picture.width > 1000 and len(picture.convert('RGB').getcolors(10**7)) > 100

    (folder / 'work' / 'distilled' / 'done.json').unlink()  # as if cut off at the very end
    text = run(demo, folder, monkeypatch)
    assert text.count('done before') == 2
    assert 'esumed' in (folder / 'work' / 'distilled' / 'train.log').read_text()

    with pytest.raises(demo.RunError, match='holds a run with other settings'):
        run(demo, folder, monkeypatch, seed=1)


def test_data_that_cannot_be_made(monkeypatch, tmp_path):
    (tmp_path / 'data').touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match='the data could not be made'):
        make_digit_scenes()


def test_with_a_teacher_that_is_trained(demo, folder, monkeypatch):
    shutil.rmtree(folder / 'work' / 'distilled', ignore_errors=True)
    weights = folder / 'teacher.pth'
    save_random_weights(folder / 'student.py', weights)
    torch.save(dict(torch.load(weights), meta={}), weights)
    (folder / 'teacher.json').write_text('{"mIoU": 90}')
    text = run(demo, folder, monkeypatch, weights=weights)
    assert '[1/2] student alone' in text and '[2/2] distilled student' in text
    assert re.search(r'teacher +│ +90\.00 │ +0\.80 M │ +trained before │ +│', text)


def test_the_teacher_that_ships(demo):
    task = demo.QUICK['segmentation']
    assert task.weights.stat().st_size < 3e6
    origin = json.loads(task.weights.with_suffix('.json').read_text())
    assert {'commands', 'seed', 'data', 'date', 'mIoU'} <= origin.keys()
    cfg = read_config(str(ROOT / 'configs' / task.teacher))
    init_default_scope(cfg.default_scope)
    saved = torch.load(task.weights, weights_only=True)
    MODELS.build(cfg.model).load_state_dict(saved['state_dict'])  # no key too many, none missing
    assert saved['meta']['dataset_meta']['classes'] == cfg.metainfo.classes


def test_the_quick_demo_shows_segmentation(demo, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['demo.py', '--quick', '--task', 'detection'])
    with pytest.raises(SystemExit):
        demo.main()
    assert '--quick has a teacher for --task segmentation alone' in capsys.readouterr().err


def test_a_run_that_fails_says_where_to_look(demo, folder, tmp_path):
    broken = tmp_path / 'broken.py'
    broken.write_text(f"_base_ = '{folder}/student.py'\nmodel = dict(type='NoSuchModel')\n")
    with pytest.raises(demo.RunError) as error:
        demo.train(
            broken, tmp_path / 'run', dict(seed=0, batch_size=2), 'teacher', Console(quiet=True)
        )
    text = str(error.value)
    assert text.startswith('teacher failed: the end of ') and 'train.log' in text
    assert 'the same command goes on' in text


def test_the_score_of_a_resumed_run_is_the_last_one(demo, tmp_path):
    for name, steps in (('20260101_000000', (100, 200)), ('20260101_010000', (200, 300))):
        data = tmp_path / name / 'vis_data'
        data.mkdir(parents=True)
        lines = [dict(mIoU=step / 10, step=step) for step in steps] + [dict(loss=1.0, step=150)]
        (data / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    task = demo.TASKS['segmentation']
    assert demo.score(tmp_path, task) == 30
    with pytest.raises(demo.RunError, match='has no mIoU'):
        demo.score(tmp_path / 'nothing', task)


@pytest.mark.parametrize(
    ('teacher', 'student', 'distilled', 'said'),
    [
        (40, 20, 35, 'closed 75% of the gap between student and teacher (+15.00 of 20.00 mIoU)'),
        (40, 20, 15, 'widened 25% of the gap between student and teacher (-5.00 of 20.00 mIoU)'),
        (20, 20, 30, 'there is no gap to close'),
    ],
)
def test_the_message(demo, teacher, student, distilled, said):
    scores = dict(teacher=teacher, student=student, distilled=distilled)
    assert said in demo.message(demo.TASKS['segmentation'], scores)


@pytest.mark.parametrize(
    ('free', 'wanted', 'threads'), [(2, 2, None), (1, 2, '1'), (0, 1, None), (5.2, 8, '5')]
)
def test_a_training_beside_others_gets_the_free_cores(demo, free, wanted, threads):
    variables = {} if threads is None else dict(OMP_NUM_THREADS=threads, OMP_WAIT_POLICY='PASSIVE')
    assert demo.environment_for(free, wanted) == variables


def test_the_number_of_threads_that_the_user_chose_stays(demo, monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '2')
    assert demo.beside_others(Console(quiet=True)) == {}


@pytest.mark.parametrize('name', ['segmentation', 'detection'])
def test_its_configs_exist(demo, name):
    task = demo.TASKS[name]
    for config in (task.teacher, task.student, task.distilled):
        assert (ROOT / 'configs' / config).is_file()
