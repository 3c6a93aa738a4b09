"""Variables of a base that a config sets again: named where they change nothing."""

from __future__ import annotations

import pytest

from mmkd_plugin.base_variables import warn_of_base_variables
from mmkd_plugin.cli import apply_options, read_config

BASE = """\
model = dict(type='A', num_classes=3)
data_root = 'old/'
crop = (8, 8)
num_classes = 3
train_pipeline = [dict(type='Load'), dict(type='Crop', crop=crop)]
train_dataloader = dict(dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=train_pipeline))
"""
SETS = 'The config sets `{0}`, which nothing reads: '
TWO = (
    'train_dataloader.dataset.{0}, val_dataloader.dataset.{0} have the value of its _base_. '
    'Write it there: '
)


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        (
            "data_root = 'new/'",
            SETS.format('data_root')
            + TWO.format('data_root')
            + 'train_dataloader=dict(dataset=dict(data_root=data_root))',
        ),
        (
            "train_pipeline = [dict(type='Load')]",
            SETS.format('train_pipeline')
            + TWO.format('pipeline')
            + 'train_dataloader=dict(dataset=dict(pipeline=train_pipeline))',
        ),
        (
            'num_classes = 5',
            SETS.format('num_classes') + 'model.num_classes has the value of its _base_. '
            'Write it there: model=dict(num_classes=num_classes)',
        ),
        (
            'crop = (4, 4)',
            SETS.format('crop') + TWO.format('pipeline[1].crop').removesuffix(': '),
        ),
        # It is read, or it is as it was, or no place had it.
        ("data_root = 'old/'", None),
        ("data_root = 'new/'\nval_dataloader = dict(dataset=dict(data_root=data_root))", None),
        ("data_root = 'new/'\nval_evaluator = dict(ann_file=data_root + 'val.json')", None),
        ("mine = 'new/'", None),
        (
            "train_pipeline = [dict(type='Load')]\n"
            "train_dataloader = dict(dataset=dict(pipeline=[dict(type='Load')]))",
            None,
        ),
        (
            "data_root = 'new/'\n"
            "train_dataloader = dict(dataset=dict(data_root='a'))\n"
            "val_dataloader = dict(dataset=dict(data_root='b'))",
            None,
        ),
    ],
)
def test_a_variable_of_the_base_that_is_set_again(text, said, log, tmp_path):
    (tmp_path / 'base.py').write_text(BASE)
    (tmp_path / 'run.py').write_text(f"_base_ = ['base.py']\n{text}\n")
    warn_of_base_variables(read_config(str(tmp_path / 'run.py')))
    assert log.warnings == ([said] if said else [])


def test_a_base_that_is_gone_is_not_asked(log, tmp_path):
    (tmp_path / 'base.py').write_text(BASE)
    (tmp_path / 'run.py').write_text("_base_ = ['base.py']\ndata_root = 'new/'\n")
    cfg = read_config(str(tmp_path / 'run.py'))
    (tmp_path / 'base.py').unlink()
    warn_of_base_variables(cfg)
    assert not log.warnings


@pytest.mark.parametrize(
    ('key', 'said'), [('data_root', True), ('train_dataloader.dataset.data_root', False)]
)
def test_a_variable_of_the_command_line(key, said, log, tmp_path):
    (tmp_path / 'run.py').write_text(BASE)
    cfg, options = read_config(str(tmp_path / 'run.py')), {key: 'new/'}
    apply_options(cfg, options)
    warn_of_base_variables(cfg, options)
    text = '--cfg-options sets `data_root`, which nothing reads: ' + TWO.format(
        'data_root'
    ).replace('its _base_', 'the config')
    written = 'train_dataloader.dataset.data_root=...'
    assert log.warnings == [text + written] * said


def test_a_base_of_a_library(log, tmp_path):
    """Its pipeline, which the child has set again."""
    (tmp_path / 'run.py').write_text(
        "_base_ = ['mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py']\n"
        "train_pipeline = [dict(type='LoadImageFromFile')]\n"
    )
    warn_of_base_variables(read_config(str(tmp_path / 'run.py')))
    assert len(log.warnings) == 1
    assert 'dict(dataset=dict(pipeline=train_pipeline))' in log.warnings[0]
