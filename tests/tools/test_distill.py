"""``tools/distill.py``: two configs and a checkpoint become a distilled student."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.registry import init_default_scope

from mmkd_plugin.checkpoint import read_checkpoint, state_dict_of
from mmkd_plugin.cli import read_config
from mmkd_plugin.registry import MODELS
from tests.attacks.harness import call_tool as call
from tests.attacks.harness import fork
from tests.runs import needs_ops
from tests.tools.conftest import SEGMENTOR
from tests.tools.tool_runs import load_tool, run_tool, save_random_weights, start_tool

TWO = '--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_begin=100'


def losses_of(work_dir: Path) -> list[float]:
    """The loss of the term in each iteration of a run."""
    scalars = read_checkpoint(work_dir / 'iter_2.pth')['message_hub']['log_scalars']
    return list(scalars['train/distill.cwd.loss'].data[0])


@pytest.fixture
def triple(segmentation: Path) -> list[Path]:
    """Student, teacher and checkpoint of a segmentor."""
    return [segmentation / name for name in ('student.py', 'teacher.py', 'teacher.pth')]


@pytest.fixture(scope='module')
def distilled(segmentation: Path) -> Path:
    """The work dir of a student distilled by the tool for two iterations."""
    words = 'student.py', 'teacher.py', 'teacher.pth'
    log = start_tool('distill', *words, *TWO, cwd=segmentation)
    work_dir = segmentation / 'work_dirs' / 'student_distilled'
    (work_dir / 'log.txt').write_text(log)
    return work_dir


def test_a_run(distilled, segmentation):
    log = (distilled / 'log.txt').read_text()
    assert 'Compares class scores before upsampling' in log
    assert log.index('decode_head.conv_seg') < log.index('Iter(train) [1/2]')  # the plan
    assert log.count('stops after decode_head.conv_seg') == 1
    text = (distilled / 'student_distilled.py').read_text()
    assert f"_base_ = ['{segmentation}/student.py']" in text
    assert len(text.splitlines()) < 20
    cfg = read_config(str(distilled / 'student_distilled.py'))
    assert cfg.model.teacher == dict(
        config=str(segmentation / 'teacher.py'), checkpoint=str(segmentation / 'teacher.pth')
    )
    loss = dict(type='mmkd_plugin.ChannelWiseLoss', tau=4, loss_weight='auto')
    beside = dict(type='mmkd_plugin.PearsonLoss', loss_weight='auto')
    assert cfg.model.distill == dict(
        cwd=dict(tap='class_scores', loss=loss), pkd=dict(tap='backbone[3]', loss=beside)
    )
    assert cfg.train_cfg.max_iters == 4  # the settings of the command line are not in it


def test_the_student_is_a_plain_one(distilled, segmentation):
    cfg = read_config(str(segmentation / 'student.py'))
    init_default_scope('mmseg')
    weights = state_dict_of(read_checkpoint(distilled / 'iter_2.pth'))
    cfg.model.backbone.norm_cfg.type = 'BN'
    MODELS.build(cfg.model).load_state_dict(weights, strict=True)


def test_the_same_losses_as_with_the_other_tool(distilled, triple, call_tool, tmp_path):
    seed = 'randomness.seed=7'
    call_tool('distill', *triple, '--work-dir', tmp_path / 'one', *TWO, seed)
    written = tmp_path / 'one' / 'student_distilled.py'
    assert written.read_text() == (distilled / 'student_distilled.py').read_text()
    call_tool('train', written, '--work-dir', tmp_path / 'other', *TWO, seed)
    assert losses_of(tmp_path / 'one') == losses_of(tmp_path / 'other')
    assert len(losses_of(tmp_path / 'one')) == 2


def test_resume_takes_the_config_that_is_there(distilled, triple, call_tool, fails, tmp_path):
    work_dir = tmp_path / 'run'
    work_dir.mkdir()
    for name in ('student_distilled.py', 'iter_2.pth'):
        (work_dir / name).write_bytes((distilled / name).read_bytes())
    config = work_dir / 'student_distilled.py'
    edited = config.read_text().replace('tau=4', 'tau=3')
    config.write_text(edited)
    options = '--work-dir', work_dir
    more = TWO[0], 'train_cfg.max_iters=3', TWO[2]
    message = fails('distill', *triple, *options, '--resume', *more)
    assert 'model.distill.cwd.loss.tau: 4 → 3' in message and '--allow-changes' in message
    call_tool('distill', *triple, *options, '--resume', '--allow-changes', *more)
    assert config.read_text() == edited  # though the runner saves a config of that name
    assert 'tau=3' in (work_dir / 'student_distilled_full.py').read_text()
    assert read_checkpoint(work_dir / 'iter_3.pth')['meta']['iter'] == 3

    message = fails('distill', *triple, *options)
    assert 'is not what would be written now' in message and '--work-dir' in message
    other = triple[0], triple[0], triple[2]
    assert 'Go on with the same one' in fails('distill', *other, *options, '--resume')
    message = fails('distill', *triple, *options, '--resume', '--method', 'at')
    assert 'has no term at' in message


@pytest.fixture
def dry(call_tool: Callable[..., str], tmp_path: Path) -> Callable[..., str]:
    """Runs the tool with ``--dry-run``; returns the config that it prints."""

    def call(*args: object) -> str:
        out = call_tool('distill', *args, '--work-dir', tmp_path / 'dry', '--dry-run')
        assert not (tmp_path / 'dry').exists()
        return out[out.index('# Compares') :]

    return call


def test_dry_run_stops_after_the_plan_and_writes_nothing(triple, segmentation, tmp_path):
    before = written_in(segmentation)
    out = run_tool('distill', *triple, '--dry-run', cwd=tmp_path)
    assert written_in(segmentation) == before and written_in(tmp_path) == {}
    plan, config = out[: out.index('# Compares')], out[out.index('# Compares') :]
    rows = [[cell.strip() for cell in line.split('│')[1:-1]] for line in plan.splitlines()]
    rows = [row for row in rows if row]
    assert [row[0] for row in rows if row[0]] == ['cwd', 'pkd']
    texts = [' '.join(column).split() for column in zip(*rows, strict=True)]
    term, student, teacher, connector, loss, on = map(' '.join, texts)
    assert term == 'cwd pkd'
    assert student == 'class_scores 3 channels, stride 8 backbone[3] 64 channels, stride 8'
    assert teacher == student  # both have eight channels in their first stage
    assert 'ChannelWiseLoss' in loss and 'tau=4' in loss and 'PearsonLoss' in loss
    assert connector == 'none none' and on
    assert 'stops after decode_head.conv_seg' in plan  # the work of the teacher
    assert '_base_ = [' in config and 'Iter(train)' not in out


def written_in(folder: Path) -> dict[Path, int]:
    """All files and folders in a folder, and when they were changed."""
    return {one: one.stat().st_mtime_ns for one in folder.rglob('*')}


def test_dry_run_shows_the_config(dry, triple):
    text = dry(*triple)
    assert "tap='class_scores'" in text and text.rstrip().endswith('))))')
    assert "tap='class_scores@input'" in dry(*triple, '--method', 'pkd')


def test_other_classes_and_another_family(dry, segmentation, data, tmp_path):
    head = "type='SegformerHead', channels=8, in_index=[0, 1, 2, 3], num_classes=5"
    text = SEGMENTOR.format(root=str(data), depth=18)
    text = re.sub(r"type='FCNHead'.*num_classes=3", head, text)
    text = text.replace('in_channels=64', 'in_channels=[8, 16, 32, 64]')
    text = re.sub(r'    auxiliary_head.*\n', '', text)
    text = text.replace("['ground', 'box', 'disc']", "['sky', 'box', 'disc', 'road', 'car']")
    (tmp_path / 'teacher.py').write_text(text)
    save_random_weights(tmp_path / 'teacher.py', tmp_path / 'teacher.pth')
    names = [tmp_path / name for name in ('teacher.py', 'teacher.pth')]
    text = dry(segmentation / 'student.py', *names)
    assert 'because the classes differ' in text
    assert "tap='class_scores@input'" in text


def test_a_choice_that_no_table_has_says_so(dry, triple):
    assert 'is not measured' not in ' '.join(dry(*triple).split('\n# '))
    assert 'is not measured' in ' '.join(dry(*triple, '--method', 'at').split('\n# '))


@needs_ops
def test_a_detector(dry, detection):
    text = dry(detection / 'student.py', detection / 'student.py', detection / 'teacher.pth')
    assert "tap='neck'" in text and "tau=1, loss_weight='auto'" in text


def test_the_settings_of_the_student_count(dry, triple):
    options = '--cfg-options', 'model.student.decode_head.num_classes=2'
    assert 'because the classes differ' in dry(*triple, *options)


OWN_MODEL = """
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn


@MODELS.register_module(force=True)
class OwnSegmentor(BaseModel):
    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.encoder = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.classifier = nn.Conv2d(8, 3, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.classifier(self.encoder(inputs))
"""
OWN_CONFIG = """
custom_imports = dict(imports=['own_segmentor'])
default_scope = 'mmseg'
model = dict(type='OwnSegmentor')
"""


def test_a_pair_with_nothing_in_common(fails, triple, tmp_path, monkeypatch):
    (tmp_path / 'own_segmentor.py').write_text(OWN_MODEL)
    (tmp_path / 'own.py').write_text(OWN_CONFIG)
    monkeypatch.syspath_prepend(tmp_path)
    save_random_weights(tmp_path / 'own.py', tmp_path / 'own.pth')
    names = [tmp_path / name for name in ('own.py', 'own.pth')]
    message = fails('distill', triple[0], *names, '--work-dir', tmp_path / 'run')
    for said in (
        'nothing to compare was found',
        "the student has class scores at 'class_scores'",
        'the teacher has no maps that were recognised',
        'write the config by hand, with `student_tap` and `teacher_tap`',
        'docs/taps.md',
    ):
        assert said in message, message
    assert not (tmp_path / 'run').exists()


PURE_PYTHON = """
from mmengine.config import read_base

with read_base():
    from .student import *
"""


def test_a_pure_python_config_is_refused_with_what_to_write(fails, triple, segmentation, tmp_path):
    student = tmp_path / 'pure.py'
    (tmp_path / 'student.py').write_text("model = dict(type='EncoderDecoder')")
    student.write_text(PURE_PYTHON)
    message = fails('distill', student, *triple[1:], '--work-dir', tmp_path / 'run')
    assert f'{student} is a pure-Python config' in message
    assert '`with read_base():` and `from .student import *`' in message
    assert 'tools/train.py' in message and not (tmp_path / 'run').exists()


def images_read_before_the_first_iteration(folder: Path, data: Path, triple: list[Path]) -> int:
    """How many images a run of the command has read when its first iteration is over."""

    def told(self: LoadImageFromFile, results: dict) -> dict | None:
        print(READ)
        return load(self, results)

    def run() -> None:
        LoadImageFromFile.transform = told
        words = *triple, '--cfg-options', f'data_root={data}'
        options = [f'{key}.dataset.data_root={data}' for key in LOADERS]
        call(load_tool('distill').main, 'distill', [*words, *options, *TWO[1:]])

    load = LoadImageFromFile.transform
    ending = fork(run, folder)
    assert ending.status == 0, ending.log[-4000:]
    assert ending.steps == 2
    return ending.log[: ending.log.index('Iter(train) [1/2]')].count(READ)


READ = '<<an image>>'
LOADERS = 'train_dataloader', 'val_dataloader', 'test_dataloader'


def test_a_larger_data_set_does_not_delay_the_first_iteration(data, triple, tmp_path):
    read = {}
    for count in (20, 500):
        folder = tmp_path / f'{count} images'
        for part in ('images', 'masks'):
            (folder / part).mkdir(parents=True)
            for number in range(count):
                (folder / part / f'{number}.png').hardlink_to(data / part / f'{number % 6}.png')
        read[count] = images_read_before_the_first_iteration(
            tmp_path / f'run on {count}', folder, triple
        )
    looked_at, first_batch = 8 + 1, 2  # images for training, and one for validation
    assert read == dict.fromkeys((20, 500), looked_at + first_batch)


def test_mistakes(fails, triple, segmentation, tmp_path):
    student, teacher, weights = triple
    work_dir = '--work-dir', tmp_path / 'run'
    for words, said in {
        (segmentation / 'studnet.py', teacher, weights): 'there is student.py',
        (student, segmentation / 'taecher.py', weights): 'there is teacher.py',
        (student, teacher, segmentation / 'taecher.pth'): 'there is teacher.pth',
        (segmentation / 'distilled.py', teacher, weights): 'is distilled already: python tools/',
        (*triple, '--method', 'pixelwise'): 'did you mean `pixel_wise`',
        (*triple, '--launcher', 'pytorch'): 'no such launcher started this process',
    }.items():
        assert said in fails('distill', *words, *work_dir)
    assert not (tmp_path / 'run').exists()
