"""The package's face: public names, loaded when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mmkd_plugin
from mmkd_plugin import losses
from mmkd_plugin.registry import MODELS


def test_every_public_name_is_there():
    for name in mmkd_plugin.__all__:
        assert getattr(mmkd_plugin, name) is not None
    assert set(mmkd_plugin.__all__) <= set(dir(mmkd_plugin))
    kinds = {name for name in losses.__all__ if name[0].isupper()}
    assert kinds <= set(mmkd_plugin.__all__)


#: Registered under names that configs use and nobody imports.
BY_CONFIG_ONLY = {
    'BcosBatchNorm2d',
    'BcosConv2d',
    'DetDataPreprocessor',
    'FCNHead3x3',
    'ParaphraserTraining',
    'SegDataPreProcessor',
    'StudentMaps',
}


def test_models_that_a_config_can_name_are_public():
    MODELS.get('ChannelWiseLoss')  # imports all that registers something
    own = {n for n, kind in MODELS.module_dict.items() if kind.__module__.startswith('mmkd_plugin')}
    assert own - BY_CONFIG_ONLY <= set(mmkd_plugin.__all__)


def test_a_name_that_does_not_exist():
    with pytest.raises(AttributeError, match="has no attribute 'ChanelWiseLoss'"):
        mmkd_plugin.ChanelWiseLoss  # noqa: B018


@pytest.mark.parametrize('name', ['__version__', 'Distiller', 'ChannelWiseLoss'])
def test_neither_library_is_loaded(name):
    found = '{"mmseg", "mmdet"} & {*sys.modules}'
    script = f'import sys, mmkd_plugin; mmkd_plugin.{name}; print({found})'
    run = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True)
    assert run.stdout.strip().endswith('set()')
