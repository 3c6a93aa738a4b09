"""Looking at a page in a browser without a window."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome') or shutil.which('chrome')

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium on the PATH')


def look(page: Path, profile: Path, *arguments: str) -> str:
    """Opens a page in a browser without a window; returns its output."""
    command = [
        CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr', '--v=0',
        f'--user-data-dir={profile}', *arguments, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def check_in_browser(page: Path, folder: Path, width: int, dark: bool = False) -> None:
    """No console message, whole pictures, no wider than the window (a frame shows that)."""
    frame = folder / 'frame.html'
    frame.write_text(
        f'<iframe id="f" style="width:{width}px;height:900px" src="{page.as_uri()}"></iframe>'
        '<script>onload = () => { const d = f.contentDocument; document.title = '
        '[d.documentElement.scrollWidth, f.clientWidth, '
        '[...d.images].filter(i => !i.complete || !i.naturalWidth).length].join(" "); }</script>'
    )
    command = ('--allow-file-access-from-files', '--virtual-time-budget=3000', '--dump-dom')
    said = look(frame, folder / 'browser', *command)
    assert 'CONSOLE' not in said
    needed, there, broken = map(int, re.search(r'<title>(.*?)</title>', said)[1].split())
    assert needed <= there and broken == 0

    shot = folder / 'shot.png'
    size = f'--window-size={max(width, 500)},900'
    scheme = f'--blink-settings=preferredColorScheme={int(not dark)}'
    said = look(page, folder / 'browser', size, scheme, f'--screenshot={shot}')
    assert 'CONSOLE' not in said
    pixels = np.asarray(Image.open(shot).convert('L'))
    assert pixels.std() > 5 and (np.median(pixels) < 80) == dark
