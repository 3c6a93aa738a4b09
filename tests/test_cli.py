"""What the tools share: bars that say how much time is left, and what is written."""

from __future__ import annotations

import re
import subprocess
import sys
from io import StringIO

from rich.console import Console

from mmkd_plugin.cli import stages

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
