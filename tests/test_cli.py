"""What the tools share: bars that say how much time is left, and checks of configs."""

from __future__ import annotations

import re
import subprocess
import sys
from io import StringIO

import pytest
from mmengine.config import Config
from rich.console import Console

from mmkd_plugin.cli import UsageError, check_evaluations, stages

WARNS = """
import sys, warnings
from mmkd_plugin.cli import plain_errors
with plain_errors():
    for number in range(3):
        with warnings.catch_warnings():  # which makes Python forget what it showed
            warnings.simplefilter('ignore')
        for folder in ('mmseg', 'own'):
            warnings.warn_explicit(f'of {folder}', UserWarning, f'/lib/{folder}/a.py', 1)
"""


def test_warnings_of_the_libraries_are_shown_once():
    done = subprocess.run([sys.executable, '-c', WARNS], capture_output=True, text=True, check=True)
    assert done.stderr.count('of mmseg') == 1 and done.stderr.count('of own') == 3


def drawn(terminal: bool) -> str:
    text = StringIO()
    with stages(2, Console(file=text, force_terminal=terminal, width=80)) as begin:
        begin('reading')
        begin('writing')
    return re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', text.getvalue())


def test_stages_are_counted_where_someone_looks():
    assert re.search(r'writing .* 2/2 0:00:00 left', drawn(terminal=True))
    assert drawn(terminal=False).strip() == ''


@pytest.mark.parametrize(
    ('there', 'message'),
    [
        (
            ('val_dataloader', 'val_cfg'),
            'val_dataloader and val_cfg are there, val_evaluator is missing: write all three, or '
            'none of them (val_dataloader=None, val_cfg=None)',
        ),
        (
            ('test_evaluator',),
            'test_evaluator is there, test_dataloader and test_cfg are missing: write all three, '
            'or none of them (test_evaluator=None)',
        ),
        (('val_dataloader', 'val_cfg', 'val_evaluator'), None),
        ((), None),
    ],
)
def test_the_three_keys_of_a_validation_belong_together(there, message):
    keys = [f'{which}_{one}' for which in ('val', 'test') for one in ('dataloader', 'cfg')]
    cfg = Config(dict.fromkeys(keys) | {key: {} for key in there})
    if message is None:
        check_evaluations(cfg)
    else:
        with pytest.raises(UsageError) as caught:
            check_evaluations(cfg)
        assert str(caught.value) == message
