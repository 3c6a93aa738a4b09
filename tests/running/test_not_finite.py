"""A step whose loss is not finite is kept, and runs again to the same values, bit for bit."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, InstanceData, PixelData

from mmkd_plugin.cache.wiring import wire
from mmkd_plugin.checkpoint import CheckpointError
from mmkd_plugin.cli import UsageError
from mmkd_plugin.health import BrokenWeightsError, NotFiniteError
from mmkd_plugin.runner_errors import runner_errors_named
from mmkd_plugin.running.batches import packed, unpacked
from mmkd_plugin.running.hook import make_resumable
from mmkd_plugin.running.not_finite import Step, steps_kept
from mmkd_plugin.running.resuming import newest_checkpoint
from mmkd_plugin.training import replay
from tests.ddp import DISTRIBUTED, forked
from tests.fuzz import models
from tests.runs import assert_same, config, needs_ops, save_weights
from tests.stock_models import cwd
from tests.tools.tool_runs import load_tool

pytestmark = pytest.mark.usefixtures('own_globals')


class Break(Hook):
    """Puts a value into a weight before an iteration."""

    def __init__(self, key: str, value: float, at: int) -> None:
        self.key, self.value, self.at = key, value, at

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter == self.at:
            with torch.no_grad():
                weight = dict(runner.model.named_parameters())[self.key]
                weight.flatten()[0] = self.value


class BreakGradient(Hook):
    """Lets a weight get a gradient of NaN in an iteration, of a loss that is finite."""

    def __init__(self, key: str, at: int) -> None:
        self.key, self.at = key, at

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter == self.at:
            weight = dict(runner.model.named_parameters())[self.key]
            handle = weight.register_hook(lambda grad: (handle.remove(), grad * math.nan)[1])


def settings(data: Path, folder: Path) -> Config:
    """A run with all that a step changes: a memory, a queue, an automatic weight, random masks."""
    large = dict(
        config=models.segmentor(8), checkpoint=save_weights(models.segmentor(8), folder / 't.pth')
    )
    own, tap = models.own, 'backbone.conv2'
    student = models.segmentor(4)
    student['decode_head']['dropout_ratio'] = 0.5
    model = models.distiller(
        student,
        large,
        dict(
            auto=dict(tap=models.SCORES, loss=cwd(tau=4.0, loss_weight='auto')),
            masks=dict(tap=tap, loss=own('MaskedGenerationLoss', loss_weight=1e-4)),
            memory=dict(tap=tap, loss=own('MemoryContrastLoss', classes=3, pixels=20, regions=5)),
            queue=dict(
                tap=tap,
                connector=own('ConvConnector'),
                loss=own('TokenRelationLoss', queue=7),
            ),
        ),
    )
    return config(model, data, folder / 'work', 6, augment=True)


def fail(cfg: Config, hook: Hook) -> str:
    """Trains until a loss is not finite; returns the message."""
    runner = Runner.from_cfg(cfg)
    make_resumable(runner)
    runner.register_hook(hook)
    with pytest.raises(NotFiniteError) as info, steps_kept(runner):
        runner.train()
    return str(info.value)


@pytest.fixture(scope='module')
def failed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A work dir with a step that failed, and the message."""
    folder = tmp_path_factory.mktemp('nan')
    cfg = settings(data, folder)
    return folder / 'work', fail(cfg, Break('backbone.conv2.weight', 3e38, 3))


def test_a_step_is_kept_and_runs_again_bit_for_bit(failed, capsys, monkeypatch):
    work_dir, message = failed
    folder = work_dir / 'nan_3'
    assert message.endswith(f'To run this step again: tools/train.py --replay {folder}')
    assert sorted(one.name for one in folder.iterdir() if one.is_file()) == [
        'config.py',
        'report.txt',
        'step.pth',
    ]
    monkeypatch.setattr(sys, 'argv', ['train.py', '--replay', str(folder)])
    load_tool('train').main()
    said = capsys.readouterr().out
    assert 'All losses are the same, bit for bit.' in said
    assert re.search(
        r"First: '(backbone|decode_head)\.\S+' of the student \(\w+\): its output", said
    )
    assert "  'decode_head.conv_seg' of teacher 'teacher': " in said  # which is finite
    assert "! 'decode_head.conv_seg' of the student: " in said


@needs_ops
def test_a_step_of_a_detector(data, tmp_path, capsys):
    cfg = config(models.of_a_detector(), data, tmp_path / 'work', 2)
    message = fail(cfg, Break('backbone.conv2.weight', float('inf'), 1))
    replay(message.split('--replay ')[1])
    said = capsys.readouterr().out
    assert 'All losses are the same, bit for bit.' in said
    assert 'Weights are not finite already: `backbone.conv2.weight` of the student' in said
    assert "First: 'backbone.conv2' of the student (Conv2d): its output (2, 8, " in said


TEACHERS = dict(
    cached=models.with_a_cache,
    cached_views=lambda data, folder: models.with_a_cache(data, folder, views=2),
    own=lambda *_: models.with_a_self_teacher(),
    foundation=lambda *_: models.with_a_foundation_model(),
)


@pytest.mark.parametrize('make', TEACHERS.values(), ids=TEACHERS)
def test_a_step_with_any_teacher(make, data, tmp_path, capsys):
    cfg = config(make(data, tmp_path), data, tmp_path / 'work', 3, augment=True)
    wire(cfg)
    message = fail(cfg, Break('backbone.conv2.weight', 3e38, 2))
    replay(message.split('--replay ')[1])
    said = capsys.readouterr().out
    assert 'All losses are the same, bit for bit.' in said
    assert "First: 'backbone.conv2' of the student (Conv2d): " in said


def test_each_process_keeps_its_step(data, tmp_path, capsys):
    """Both have a loss that is not finite; then the second alone has."""
    cfg = settings(data, tmp_path)
    folder = tmp_path / 'work/nan_2'
    files = folder, folder / 'step_1.pth'

    def work(rank: int) -> str:
        distributed = Config(dict(cfg.to_dict(), **DISTRIBUTED))
        return fail(distributed, Break('module.backbone.conv2.weight', 3e38, 2))

    for message, file in zip(forked(work, tmp_path), files, strict=True):
        assert message.endswith(f'To run this step again: tools/train.py --replay {file}')
    names = {one.name for one in folder.iterdir() if one.is_file()}
    assert names == {
        *('config.py', 'report.txt', 'step.pth', 'config_1.py', 'report_1.txt', 'step_1.pth')
    }
    steps = [Step(file) for file in files]
    assert [one.content['rank'] for one in steps] == [0, 1]
    assert [one.content['processes'] for one in steps] == [2, 2]
    assert not torch.equal(*(torch.stack(one.batch['inputs']) for one in steps))
    for file in files:
        replay(str(file))
        assert 'All losses are the same, bit for bit.' in capsys.readouterr().out
    (folder / 'step.pth').unlink()
    assert Step(folder).content['rank'] == 1


def test_a_gradient_that_is_not_finite_is_told_at_the_next_step(data, tmp_path):
    """The loss of its own step is finite."""
    message = fail(settings(data, tmp_path), BreakGradient('backbone.conv2.weight', 2))
    assert 'at iteration 3' in message
    assert (
        '. Weights were not finite before this step: `backbone.conv2.weight` of the mo' in message
    )


def test_a_gradient_that_is_not_finite_ends_a_run_that_clips(data, tmp_path):
    cfg = settings(data, tmp_path)
    cfg.optim_wrapper.clip_grad = dict(max_norm=35.0, error_if_nonfinite=True)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(BreakGradient('backbone.conv2.weight', 2))
    with pytest.raises(ValueError, match=r'^optim_wrapper: .*non-finite'), runner_errors_named(cfg):
        runner.train()
    assert runner.iter == 2
    assert all(value.isfinite().all() for value in runner.model.parameters())


def test_weights_that_are_not_finite_are_not_saved(data, tmp_path):
    """The checkpoint before them stays, although the run keeps one."""
    cfg = settings(data, tmp_path)
    cfg.default_hooks.checkpoint.update(interval=1, max_keep_ckpts=1)
    runner = Runner.from_cfg(cfg)
    make_resumable(runner)
    runner.register_hook(BreakGradient('backbone.conv2.weight', 2))
    told = r'^weights are not finite after iteration 2: `backbone\.conv2\.weight` of the model'
    with pytest.raises(BrokenWeightsError, match=told):
        runner.train()
    assert [one.name for one in (tmp_path / 'work').glob('*.pth')] == ['iter_2.pth']
    assert newest_checkpoint(tmp_path / 'work').path == str(tmp_path / 'work/iter_2.pth')


def test_a_run_keeps_one_step(failed, data):
    work_dir, _ = failed
    (work_dir / 'nan_of_mine').mkdir(exist_ok=True)
    other = work_dir / 'nan_9'
    other.mkdir()
    (other / 'config.py').write_text('')
    cfg = Config.fromfile(work_dir / 'nan_3/config.py')
    cfg.experiment_name += '-again'
    fail(cfg, Break('decode_head.conv_seg.bias', float('nan'), 3))
    assert sorted(one.name for one in work_dir.glob('nan_*')) == ['nan_3', 'nan_of_mine']
    report = (work_dir / 'nan_3/report.txt').read_text()
    assert "! 'decode_head.conv_seg' of the student: " in report


def test_a_step_that_goes_well_elsewhere_says_so(failed, monkeypatch):
    work_dir, _ = failed
    step = Step(work_dir / 'nan_3')
    monkeypatch.setattr(Step, 'run', lambda *_: {step.content['culprit']: torch.tensor(1.5)})
    with pytest.raises(UsageError, match=r'is 1\.5 here, and was .*run it again there'):
        replay(str(work_dir / 'nan_3'))


def test_a_teacher_that_has_changed_is_told(failed, data):
    work_dir, _ = failed
    save_weights(models.segmentor(8), work_dir.parent / 't.pth', seed=8)
    with pytest.raises(CheckpointError, match="weights of teacher 'teacher' have changed"):
        replay(str(work_dir / 'nan_3'))
    save_weights(models.segmentor(8), work_dir.parent / 't.pth')


def test_a_step_that_cannot_run_again_is_told(failed):
    folder = failed[0] / 'nan_3'
    file, whole = folder / 'step.pth', torch.load(folder / 'step.pth', weights_only=False)
    try:
        torch.save({**whole, 'key': [*whole['key'][:-1], -1]}, file)
        with pytest.raises(CheckpointError, match=r'step\.pth is damaged'):
            replay(str(folder))
        sample = {**whole['batch']['data_samples'][0], 'data': {}}
        samples = [sample, *whole['batch']['data_samples'][1:]]
        torch.save({**whole, 'batch': {**whole['batch'], 'data_samples': samples}}, file)
        with pytest.raises(CheckpointError, match=rf'^{folder} cannot be run again: Attribute'):
            replay(str(folder))
    finally:
        torch.save(whole, file)


def test_a_folder_without_a_step_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r'--replay .*: no step was saved there'):
        replay(str(tmp_path))


def test_a_folder_that_cannot_be_written_hides_no_error(data, tmp_path):
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work/nan_0').write_text('in the way')
    message = fail(settings(data, tmp_path), Break('backbone.conv2.weight', float('nan'), 0))
    assert 'at iteration 0' in message and '--replay' not in message
    (file,) = (tmp_path / 'work').glob('2*/2*.log')
    assert 'WARNING - The step could not be saved in' in file.read_text()


def test_batches_come_back_as_they_were():
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo=dict(img_path='a.png', img_shape=(4, 6), flip=None))
    sample.gt_sem_seg = PixelData(data=torch.ones(1, 4, 6))
    sample.set_data(dict(mmkd_stored=BaseDataElement(**{'neck#0': torch.rand(2, 2, 3)})))
    ours = dict(inputs=[torch.ones(3, 4, 6)], data_samples=[sample], odd=(1, 2.5, None, 'text'))
    theirs = unpacked(packed(ours))
    (again,) = theirs.pop('data_samples')
    assert type(again) is SegDataSample and again.metainfo == sample.metainfo
    assert torch.equal(again.gt_sem_seg.data, sample.gt_sem_seg.data)
    assert torch.equal(again.mmkd_stored.get('neck#0'), sample.mmkd_stored.get('neck#0'))
    assert_same(theirs, {key: value for key, value in ours.items() if key != 'data_samples'})


@needs_ops
def test_boxes_and_masks_come_back_as_they_were():
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks

    sample, boxes = DetDataSample(), HorizontalBoxes(torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
    masks = BitmapMasks(np.ones((1, 4, 4), np.uint8), 4, 4)
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1]), masks=masks)
    again = unpacked(packed(sample)).gt_instances
    assert type(again.bboxes) is HorizontalBoxes and torch.equal(again.bboxes.tensor, boxes.tensor)
    assert again.labels.tolist() == [1] and (again.masks.masks == masks.masks).all()


def test_what_is_no_plain_data_is_told():
    with pytest.raises(TypeError, match='PosixPath in the batch is no plain data'):
        packed(dict(path=Path('/')))
    with pytest.raises(ValueError, match='os is no class of data samples'):
        unpacked({'<object>': 'os'})
