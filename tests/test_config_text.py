"""The files of a config: which keys they set and use."""

from __future__ import annotations

import pytest
from mmengine.config import Config

from mmkd_plugin.config_text import File, files_of, is_used


def test_files_come_after_their_bases(tmp_path):
    (tmp_path / 'base.py').write_text('a = 1\n')
    (tmp_path / 'run.py').write_text("_base_ = ['base.py']\nb = 2\n")
    base, run = files_of(Config.fromfile(str(tmp_path / 'run.py')))
    assert (base.name, run.name) == (str(tmp_path / 'base.py'), str(tmp_path / 'run.py'))
    assert base.sets('a') and not base.sets('b') and run.sets('b')


def test_a_config_without_files():
    assert files_of(Config(dict(a=1))) == []


@pytest.mark.parametrize(
    ('text', 'used'),
    [
        ('a = 1', False),
        ('a = 1\nb = a', True),
        ('a = 1\nb = dict(c=[a + 1])', True),
        ('b = {{_base_.a}}', True),
        ('b = {{_base_.ab}}', False),
        ('b = dict(a=1)', False),
        ('{"a": 1', True),
    ],
)
def test_whether_a_file_uses_a_variable(text, used):
    assert File('run.py', text).uses('a') is used


def test_files_of_a_library_are_stock():
    assert File('site-packages/mmseg/.mim/configs/a.py', '').is_stock
    assert not File('project/a.py', '').is_stock


def test_values_that_occur_elsewhere():
    assert is_used([1], dict(a=dict(b=[1])))
    assert is_used(dict(a=1), [dict(b=dict(a=1))])
    assert not is_used([1], dict(a=[2]))
    assert not is_used(1, dict(a=1))
