"""Keys of configs from before mmengine: named with what is read now, unless they are variables."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from mmkd_plugin.cli import apply_options
from mmkd_plugin.old_keys import warn_of_old

#: What stock configs begin with.
BASE = """\
optimizer = dict(type='SGD', lr=0.01, momentum=0.9)
optim_wrapper = dict(type='OptimWrapper', optimizer=optimizer)
"""
OPTIMIZER = '`optimizer` has become optim_wrapper.optimizer'


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('optimizer = dict(lr=0.1)', OPTIMIZER),
        ('optimizer = dict(_delete_=True, type="Adam", lr=0.1)', OPTIMIZER),
        (
            'optimizer_config = dict(grad_clip=None)',
            '`optimizer_config` has become optim_wrapper.clip_',
        ),
        (
            'data = dict(samples_per_gpu=2)',
            '`data` has become train_dataloader=dict(batch_size=...',
        ),
        (
            'data = dict(train=dict(type="A"))',
            '`data` has become train_dataloader=dict(batch_size=...',
        ),
        ('runner = dict(type="IterBasedRunner")', '`runner` has become train_cfg'),
        ('lr_config = dict(policy="poly")', '`lr_config` has become param_scheduler'),
        (
            'evaluation = dict(interval=2)',
            '`evaluation` has become train_cfg.val_interval',
        ),
        (
            'checkpoint_config = dict(interval=2)',
            '`checkpoint_config` has become default_hooks.checkpoint',
        ),
        ('log_config = dict(interval=50)', '`log_config` has become default_hooks.logger'),
        ('fp16 = dict(loss_scale=512.)', "`fp16` has become optim_wrapper.type='AmpOptimWrapper'"),
        ('resume_from = "a.pth"', '`resume_from` has become the argument --resume'),
        ('', None),
        # What is set after it, or uses it, is what counts.
        ('optim_wrapper = dict(optimizer=dict(lr=0.1))', None),
        ('optimizer = dict(lr=1)\noptim_wrapper = dict(optimizer=optimizer)', None),
        # Variables of these names.
        ('data = dict(data_root="a")', None),
        ('data = dict(train=dict(type="A"))\ntrain_dataloader = dict(dataset=data["train"])', None),
        ('evaluation = dict(interval=2)\nval_evaluator = evaluation', None),
        ('runner = "a"\nevaluation = "b"\nresume_from = None\nfp16 = True', None),
    ],
)
def test_keys_that_were_read_before(text, said, log, tmp_path):
    (tmp_path / 'base.py').write_text(BASE)
    (tmp_path / 'run.py').write_text(f"_base_ = ['base.py']\n{text}\n")
    warn_of_old(Config.fromfile(str(tmp_path / 'run.py')))
    assert len(log.warnings) == (said is not None)
    assert said is None or said in log.warnings[0]


def test_all_of_them_in_one_line(log):
    warn_of_old(Config(dict(lr_config=dict(policy='poly'), runner=dict(max_iters=9))))
    assert log.warnings == [
        'The config has keys of mmseg 0.x and mmdet 2.x, which nothing reads: `lr_config` has '
        'become param_scheduler; `runner` has become train_cfg'
    ]


@pytest.mark.parametrize(
    ('key', 'said'), [('optimizer.lr', True), ('optim_wrapper.optimizer.lr', False)]
)
def test_keys_of_a_command_line(key, said, log, tmp_path: Path):
    (tmp_path / 'run.py').write_text(BASE)
    cfg, options = Config.fromfile(str(tmp_path / 'run.py')), {key: 0.5}
    apply_options(cfg, options)
    warn_of_old(cfg, options)
    assert [OPTIMIZER in text for text in log.warnings] == [True] * said


def test_a_config_that_was_written_whole_is_left_alone(log, tmp_path):
    cfg = Config(dict(optimizer=dict(type='SGD', lr=1), optim_wrapper=dict(optimizer=dict(lr=2))))
    cfg.dump(str(tmp_path / 'whole.py'))
    warn_of_old(Config.fromfile(str(tmp_path / 'whole.py')))
    assert not log.warnings


@pytest.mark.parametrize(('folder', 'said'), [('.mim/configs', False), ('configs', True)])
def test_what_a_library_has_left_in_its_configs(folder, said, log, tmp_path):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / 'base.py').write_text('fp16 = dict(loss_scale=512.)')
    (tmp_path / 'run.py').write_text(f"_base_ = ['{folder}/base.py']\nlr = 1\n")
    warn_of_old(Config.fromfile(str(tmp_path / 'run.py')))
    assert bool(log.warnings) is said
