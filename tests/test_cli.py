"""What the tools share: bars that say how much time is left."""

from __future__ import annotations

import re
from io import StringIO

from rich.console import Console

from mmkd_plugin.cli import stages


def drawn(terminal: bool) -> str:
    text = StringIO()
    with stages(2, Console(file=text, force_terminal=terminal, width=80)) as begin:
        begin('reading')
        begin('writing')
    return re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', text.getvalue())


def test_stages_are_counted_where_someone_looks():
    assert re.search(r'writing .* 2/2 0:00:00 left', drawn(terminal=True))
    assert drawn(terminal=False).strip() == ''
