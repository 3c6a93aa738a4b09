"""``tools/train.py`` on tiny data: distilled and plain, resumed, and with wrong arguments."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS

from mmkd_plugin import training
from mmkd_plugin.checkpoint import distillation_state, read_checkpoint, state_dict_of
from mmkd_plugin.cli import UsageError, read_config
from mmkd_plugin.cores import Cores
from mmkd_plugin.running.locking import LOCK, alone_in
from tests.runs import Touch, needs_ops
from tests.tools.tool_runs import TOOLS, load_tool, run_tool


def test_a_distilled_segmentor(trained):
    log = (trained / 'log.txt').read_text()
    assert 'Iter(train) [4/4]' in log
    assert 'distill.cwd.loss: ' in log
    assert 'mIoU: ' in log
    assert 'Traceback' not in log
    checkpoint = read_checkpoint(trained / 'iter_4.pth')
    weights = state_dict_of(checkpoint)
    assert not [key for key in weights if not key.startswith(('backbone', 'decode', 'auxiliary'))]
    assert distillation_state(weights) is not None
    assert set(checkpoint['ema_state_dict']) == {'steps', *(f'module.{key}' for key in weights)}


@pytest.mark.parametrize(
    ('busy', 'chosen', 'said'),
    [
        (10, None, '1.0 of 2 cores are free for the 2 threads of this run: OMP_NUM_THREADS=1 '),
        (2, None, None),
        (10, '2', None),  # the user's own number
    ],
)
def test_busy_cores(busy, chosen, said, monkeypatch, log):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    if chosen:
        monkeypatch.setenv('OMP_NUM_THREADS', chosen)
    monkeypatch.setattr(training, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 2)
    start = Cores(count=2, quota=math.inf, busy=50, passed=100, own=5)
    training.warn_of_busy_cores(start, replace(start, busy=50 + busy, passed=120))
    assert [text for text in log.warnings if said and said in text] == log.warnings
    assert bool(log.warnings) is bool(said)


def test_keys_that_change_nothing_are_told_below_the_config(segmentation, tmp_path, monkeypatch):
    monkeypatch.chdir(segmentation)
    log = run_tool(
        'train',
        'distilled.py',
        '--work-dir',
        tmp_path,
        '--cfg-options',
        'trian_cfg.max_iters=9',
        'train_cfg.max_iters=1',
        'optim_wrapper.paramwise_cfg.custom_keys.heads.lr_mult=10',
        'optimizer.lr=9',
        'data_root=elsewhere',
        cwd=segmentation,
    )
    said = log.index('nothing reads; did you mean `train_cfg`?')
    assert said > re.search(r'trian_cfg ?= ?dict', log).start()
    assert 'no parameter has `heads` in its name, so it changes nothing' in log
    assert 'param_scheduler[0]: PolyLR comes down until 6 iterations, and the run has 1; ' in log
    assert 'which nothing reads: `optimizer` has become optim_wrapper.optimizer' in log
    assert '--cfg-options sets `data_root`, which nothing reads: train_dataloader.' in log
    (written,) = tmp_path.glob('*/*.log')
    assert 'nothing reads; did you mean `train_cfg`?' in written.read_text()


@pytest.mark.parametrize(
    ('option', 'said'),
    [
        (
            "train_dataloader.dataset.pipeline=[dict(type='DefaultFormatBundle')]",
            "train_dataloader.dataset.pipeline[0].type: there is no 'DefaultFormatBundle'; "
            'PackSegInputs of mmseg and PackDetInputs of mmdet do its work',
        ),
        (
            "custom_hooks=[dict(type='EvalHook')]",
            "custom_hooks[0].type: there is no 'EvalHook'; train_cfg.val_interval, ",
        ),
        (
            "default_hooks.logger=dict(type='TextLoggerHook')",
            "default_hooks.logger.type: there is no 'TextLoggerHook'; now LoggerHook, in ",
        ),
    ],
)
def test_names_that_are_gone_are_told_with_their_successors(
    option, said, segmentation, fails, monkeypatch, tmp_path
):
    monkeypatch.chdir(segmentation)
    key, _, value = option.partition('=')
    text = f"_base_ = ['student.py']\n{_nested(key.split('.'), value)}\n"
    (segmentation / 'gone.py').write_text(text)
    assert said in fails('train', 'gone.py', '--work-dir', tmp_path / 'run')


def test_a_batch_that_is_too_small_for_a_batch_norm(segmentation, fails, monkeypatch, tmp_path):
    monkeypatch.chdir(segmentation)
    (segmentation / 'psp.py').write_text(
        "_base_ = ['distilled.py']\n"
        'head = _base_.model.student.decode_head\n'
        "head.type, head.pool_scales = 'PSPHead', (1, 2)\n"
        "head.pop('num_convs')\n"
        'model = dict(student=dict(decode_head=dict(_delete_=True, **head)))\n'
    )
    more = '--cfg-options', 'train_dataloader.batch_size=1'
    said = fails('train', 'psp.py', '--work-dir', tmp_path / 'run', *more)
    assert (
        'train_dataloader.batch_size=1: a batch norm got one value per channel, torch.Size' in said
    )
    assert 'Take 2 or more' in said


def _nested(keys: list[str], value: str) -> str:
    """An assignment in a config, from ``a.b`` and what it is."""
    first, *rest = keys
    for key in reversed(rest):
        value = f'dict({key}={value})'
    return f'{first} = {value}'


@pytest.mark.parametrize(('tool', 'more'), [('train', []), ('test', ['teacher.pth'])])
def test_half_a_validation_ends_with_one_line(tool, more, segmentation, fails, monkeypatch):
    monkeypatch.chdir(segmentation)
    change = ['--cfg-options', 'val_evaluator=None']
    message = fails(tool, 'student.py', *more, '--work-dir', segmentation / 'half', *change)
    assert 'val_dataloader and val_cfg are there, val_evaluator is missing' in message


def test_names_in_another_order_than_the_file_are_refused(detection, fails, monkeypatch, tmp_path):
    monkeypatch.chdir(detection)
    config = tmp_path / 'order.py'
    names = "dataset=dict(metainfo=dict(classes=('disc', 'box')))"
    text = f'_base_ = [{str(detection / "distilled.py")!r}]\n'
    config.write_text(f'{text}train_dataloader = dict({names})\n')
    message = fails('train', config, '--work-dir', tmp_path / 'run')
    assert 'train_dataloader.dataset.metainfo.classes is in another order than the' in message
    assert message.endswith("boxes.json: write ('box', 'disc')")


@pytest.mark.parametrize('key', ['train', 'val', 'test'])
def test_a_text_in_place_of_the_names_is_refused(key, segmentation, fails, monkeypatch, tmp_path):
    monkeypatch.chdir(segmentation)
    config, tests = tmp_path / 'text.py', key == 'test'
    names = "dataset=dict(metainfo=dict(classes=('box')))"
    base = 'teacher.py' if tests else 'distilled.py'
    text = f'_base_ = [{str(segmentation / base)!r}]\n'
    config.write_text(f'{text}{key}_dataloader = dict({names})\n')
    tool = ['test', config, 'teacher.pth'] if tests else ['train', config]
    message = fails(*tool, '--work-dir', tmp_path / 'run')
    assert f"error: {key}_dataloader.dataset.metainfo.classes='box' is a string" in message
    assert message.endswith("write ('box',)")


def test_resume_from_the_latest(trained, segmentation, tmp_path):
    work_dir = tmp_path / 'moved'  # `last_checkpoint` names the folder before the move
    work_dir.mkdir()
    (work_dir / 'iter_4.pth').write_bytes((trained / 'iter_4.pth').read_bytes())
    (work_dir / 'last_checkpoint').write_text('/no/longer/there/iter_4.pth')
    log = run_tool(
        'train',
        'distilled.py',
        '--work-dir',
        work_dir,
        '--resume',
        '--cfg-options',
        'train_cfg.max_iters=6',
        'train_cfg.val_begin=100',  # a new best one would remove that of the first run
        cwd=segmentation,
    )
    assert 'resumed epoch: 0, iter: 4' in log
    assert 'Iter(train) [1/6]' not in log
    assert 'Iter(train) [5/6]' in log
    resumed = read_checkpoint(work_dir / 'iter_6.pth')
    assert resumed['meta']['iter'] == 6
    assert int(resumed['ema_state_dict']['steps']) == 6
    losses = resumed['message_hub']['log_scalars']['train/distill.cwd.loss']
    assert len(losses.data[0]) == 6  # the history before the interruption is kept


@needs_ops
def test_a_distilled_detector(trained_detector):
    log = (trained_detector / 'log.txt').read_text()
    assert 'Epoch(train) [1][3/3]' in log
    assert 'distill.cwd.loss: ' in log
    assert (trained_detector / 'epoch_1.pth').is_file()


# --- the paraphraser, a stage of its own ------------------------------------------------------


def test_a_paraphraser_and_then_the_student(factors, fails, tmp_path):
    before = fails('train', factors, '--work-dir', tmp_path)
    assert 'Train it with tools/train.py CONFIG --paraphraser' in before
    assert str(tmp_path / 'paraphraser.pth') in before

    log = run_tool('train', factors, '--work-dir', tmp_path, '--paraphraser', cwd=factors.parent)
    assert 'Iter(train) [3/3]' in log and 'ft.loss: ' in log
    assert 'mIoU' not in log
    saved = tmp_path / 'paraphraser.pth'
    assert f'The paraphraser is at {saved}' in log
    assert (tmp_path / 'paraphraser' / 'iter_3.pth').is_file()
    trained = read_checkpoint(saved)['state_dict']
    assert {key.split('.')[:2] == ['ft', '0'] for key in trained} == {True}

    log = run_tool('train', factors, '--work-dir', tmp_path, cwd=factors.parent)
    assert 'distill.ft.loss: ' in log and 'Iter(train) [4/4]' in log
    assert read_checkpoint(tmp_path / 'iter_4.pth')['meta']['iter'] == 4
    dumped = read_config(str(tmp_path / 'factors.py'))
    assert dumped.model.distill.ft.teacher_connector.checkpoint == str(saved)

    again = fails('train', factors, '--work-dir', tmp_path, '--paraphraser')
    assert f'there is one at {saved} already' in again


def test_no_paraphraser_to_train(fails, segmentation, tmp_path):
    for config in ('student.py', 'distilled.py'):
        message = fails('train', segmentation / config, '--work-dir', tmp_path, '--paraphraser')
        assert 'no term of `distill` has a `teacher_connector`' in message


# --- without a subprocess: arguments ----------------------------------------------------------


def test_configs_that_do_not_exist(fails, tmp_path, segmentation):
    assert 'there is student.py' in fails('train', segmentation / 'studnet.py')
    assert 'psanet_r50-d8' in fails('train', 'mmseg::psanet/psanet_r50-d8_4xb2-80k_cityscapes.py')
    assert '`mmnothing`' in fails('train', 'mmnothing::a/b.py')
    assert 'does not exist' in fails('train', tmp_path / 'no' / 'config.py')
    (tmp_path / 'config.py').write_text("_base_ = 'gone.py'")
    message = fails('train', tmp_path / 'config.py')
    assert 'builds on' in message and 'gone.py' in message


def test_shipped_configs():
    for name in (
        'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py',
        'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    ):
        assert read_config(name).model.type in ('EncoderDecoder', 'RetinaNet')


@pytest.fixture
def bad_checkpoint(tmp_path: Path) -> Path:
    content = dict(state_dict={'w': torch.zeros(1)}, bad=Touch(tmp_path / 'flag'))
    torch.save(content, tmp_path / 'bad.pth')
    return tmp_path / 'bad.pth'


def test_checkpoints_that_cannot_be_used(fails, segmentation, bad_checkpoint, tmp_path):
    config, weights = segmentation / 'student.py', segmentation / 'teacher.pth'
    (tmp_path / 'short.pth').write_bytes(weights.read_bytes()[:5000])

    def start(path: Path) -> str:
        return fails('train', config, '--work-dir', tmp_path, '--cfg-options', f'load_from={path}')

    assert 'there is teacher.pth' in start(segmentation / 'taecher.pth')
    assert 'truncated or corrupt: its 5000 bytes' in start(tmp_path / 'short.pth')
    assert 'posix.system' in start(bad_checkpoint)
    assert not (tmp_path / 'flag').exists()

    message = fails('train', config, '--work-dir', tmp_path, '--resume', weights)
    assert 'cannot be resumed' in message and 'load_from=' in message
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'gone.pth'))
    assert 'gone.pth' in fails('train', config, '--work-dir', tmp_path, '--resume')


def test_a_step_is_replayed_only_from_its_folder(fails, call_tool, tmp_path, capsys):
    assert 'it takes a folder nan_<iteration>' in fails('train', '--replay', tmp_path)
    for arguments in ((), ('a.py', '--replay', tmp_path)):
        with pytest.raises(SystemExit):
            call_tool('train', *arguments)
        assert 'error: give a config, or --replay DIR' in capsys.readouterr().err


def test_weights_that_are_not_finite_are_named_with_their_file(fails, segmentation, tmp_path):
    student = MODELS.build(read_config(str(segmentation / 'student.py')).model)
    weights = student.state_dict()
    weights['decode_head.conv_seg.weight'][0] = torch.nan
    torch.save(dict(state_dict=weights), tmp_path / 'nan.pth')
    options = ('--cfg-options', f'load_from={tmp_path}/nan.pth')
    said = fails('train', segmentation / 'distilled.py', '--work-dir', tmp_path / 'run', *options)
    assert f'error: {tmp_path}/nan.pth: the checkpoint of the student holds weights' in said
    assert 'decode_head.conv_seg.weight (8 of 24)' in said


def test_a_distillation_that_cannot_be_used(fails, segmentation, tmp_path):
    def start(setting: str) -> str:
        options = ('--work-dir', tmp_path, '--cfg-options', setting)
        return fails('train', segmentation / 'distilled.py', *options)

    gone = segmentation / 'taecher.pth'
    assert 'there is teacher.pth' in start(f'model.teacher.checkpoint={gone}')
    wrong = segmentation / 'student.py'
    assert 'does not fit the teacher' in start(f'model.teacher.config={wrong}')
    assert 'decode_head.conv_sge' in start('model.distill.cwd.tap=decode_head.conv_sge')


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is an accelerator')
def test_amp_without_an_accelerator(fails, segmentation):
    assert 'needs an accelerator' in fails('train', segmentation / 'student.py', '--amp')


def test_the_second_run_in_a_work_dir_is_told_and_writes_nothing(fails, segmentation, tmp_path):
    ready, tell = os.pipe()
    first = os.fork()
    if first == 0:
        with alone_in(tmp_path):
            os.write(tell, b'.')
            signal.pause()
    os.read(ready, 1)
    try:
        message = fails('train', segmentation / 'student.py', '--work-dir', tmp_path)
    finally:
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
    assert f'process {first} on ' in message and 'take another --work-dir' in message
    assert [file.name for file in tmp_path.iterdir()] == [LOCK]


def test_auto_scale_lr_without_a_batch_size(fails, segmentation):
    message = fails('train', segmentation / 'student.py', '--auto-scale-lr')
    assert 'base_batch_size' in message


def test_amp_and_auto_scale_lr_change_the_config(monkeypatch):
    monkeypatch.setattr(training, 'get_device', lambda: 'cuda')
    cfg = Config(
        dict(optim_wrapper=dict(type='OptimWrapper'), auto_scale_lr=dict(base_batch_size=16))
    )
    training.use_amp(cfg)
    training.use_auto_scale_lr(cfg)
    assert cfg.optim_wrapper == dict(type='AmpOptimWrapper', loss_scale='dynamic')
    assert cfg.auto_scale_lr == dict(base_batch_size=16, enable=True)
    training.use_amp(cfg)
    cfg.optim_wrapper = ConfigDict(type='DeepSpeedOptimWrapper')
    with pytest.raises(UsageError, match='DeepSpeed'):
        training.use_amp(cfg)


def test_resume_starts_anew_when_there_is_nothing_yet(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path), load_from='weights.pth', resume=True))
    training.resume_latest(cfg)
    assert cfg.resume is False
    assert cfg.load_from == 'weights.pth'  # a job that restarts itself keeps its start


@pytest.mark.parametrize(
    'arguments, work_dir',
    [([], './work_dirs/student'), (['--work-dir', 'here'], 'here')],
)
def test_the_work_dir(arguments, work_dir, monkeypatch, segmentation):
    train = load_tool('train')
    monkeypatch.setattr(sys, 'argv', ['train.py', str(segmentation / 'student.py'), *arguments])
    monkeypatch.setenv('LOCAL_RANK', '0')
    assert Path(train.load_config(train.parse_args()).work_dir) == Path(work_dir)


# --- the scripts that start several processes -------------------------------------------------


@pytest.fixture
def launched(tmp_path: Path):
    """Run a shell script with programs that only print how they were called."""
    for program in ('python', 'srun'):
        fake = tmp_path / program
        fake.write_text('#!/bin/sh\nprintf "%s\\n" "$(basename "$0")" "$@"\n')
        fake.chmod(0o755)

    def launch(script: str, *args: str, **env: str) -> list[str]:
        done = subprocess.run(
            ['bash', str(TOOLS / script), *args],
            env={'PATH': f'{tmp_path}:{os.environ["PATH"]}', **env},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.splitlines() if done.returncode == 0 else [done.stderr]

    return launch


@pytest.mark.parametrize('tool, extra', [('train', []), ('test', ['weights.pth'])])
def test_torch_is_told_about_the_machines(tool, extra, launched):
    options = ['--cfg-options', 'a=[1,2]', 'b=x y']
    words = launched(f'dist_{tool}.sh', 'config.py', *extra, '4', *options)
    assert words[:3] == ['python', '-m', 'torch.distributed.run']
    assert '--nproc_per_node=4' in words and '--nnodes=1' in words
    start = words.index(str(TOOLS / f'{tool}.py'))
    assert words[start + 1 :] == ['config.py', *extra, '--launcher', 'pytorch', *options]

    env = dict(NNODES='2', NODE_RANK='1', PORT='1234', MASTER_ADDR='10.0.0.1')
    words = launched(f'dist_{tool}.sh', 'config.py', *extra, '8', **env)
    for word in ('--nnodes=2', '--node_rank=1', '--master_port=1234', '--master_addr=10.0.0.1'):
        assert word in words


def test_slurm_is_told_about_the_job(launched):
    options = ['--amp', '--cfg-options', 'b=x y']
    env = dict(GPUS='16', GPUS_PER_NODE='4', CPUS_PER_TASK='2', SRUN_ARGS='--time=1:00 --quiet')
    words = launched('slurm_train.sh', 'gpu', 'name', 'config.py', 'out', *options, **env)
    assert words[0] == 'srun'
    for word in (
        '--partition=gpu',
        '--job-name=name',
        '--ntasks=16',
        '--ntasks-per-node=4',
        '--gres=gpu:4',
        '--cpus-per-task=2',
        '--time=1:00',
        '--quiet',
    ):
        assert word in words
    start = words.index(str(TOOLS / 'train.py'))
    expected = ['config.py', '--work-dir', 'out', '--launcher', 'slurm', *options]
    assert words[start + 1 :] == expected


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh'])
def test_scripts_say_what_they_need(script, launched):
    (message,) = launched(script)
    assert f'{script} ' in message
