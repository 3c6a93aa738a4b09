"""The page: self-contained, with links that lead to files, and without errors in a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmkd_plugin.visualization import Page, Picture
from mmkd_plugin.visualization.figure import Cell, Grid
from mmkd_plugin.visualization.page import file_name

CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome') or shutil.which('chrome')


class Reader(HTMLParser):
    """Collects tags, and checks that each is closed where it has to be."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ('meta', 'link', 'img'):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(file: Path) -> Reader:
    reader = Reader()
    reader.feed(file.read_text(encoding='utf-8'))
    assert not reader.open
    return reader


@pytest.fixture(scope='module')
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of three images; one has a name that no file can have, two are namesakes."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 900, 3), dtype=np.uint8)
    rows = [('teacher', [Cell(pixels)] * 2), ('<student>', [Cell(pixels)] * 2)]
    grid = Grid((900, 40), ['a', 'b'], rows)
    pictures = [
        Picture('channels-neck[0]', 'Channels "neck[0]" & more', 'A <text>.', grid),
        Picture('explanations', 'Nothing', 'The teacher sees no class.', None),
    ]
    made = Page(tmp_path_factory.mktemp('page') / 'new' / 'folder')
    numbers = {
        'teacher': {'mIoU': '40.0%', 'pixels right': '80.0%'},
        '<student>': {'mIoU': '30.0%', 'as the teacher': '90.0%'},
    }
    made.add('a/b <c>', pictures, numbers)
    made.add('0001', pictures, {})
    made.add('0001', pictures, numbers)
    return made.write('A & B', {'config': 'x.py', 'taps': '<neck>'})


def test_every_link_leads_to_a_file(page: Path) -> None:
    reader = read(page)
    links = [a['href'] for tag, a in reader.tags if tag == 'a']
    sources = [a['src'] for tag, a in reader.tags if tag == 'img']
    assert len(sources) == 3 and len(set(sources)) == 3 and len(links) == 6
    names = {a['id'] for _, a in reader.tags if 'id' in a}
    for link in links + sources:
        assert link[1:] in names if link.startswith('#') else (page.parent / link).is_file()
    listed = {p.relative_to(page.parent).as_posix() for p in page.parent.rglob('*') if p.is_file()}
    assert listed == {'index.html', *sources, *(x for x in links if x[0] != '#')}


def test_nothing_comes_from_elsewhere(page: Path) -> None:
    text = page.read_text(encoding='utf-8')
    assert not re.search(r'https?:|//\w|<script|url\(|@import', text)


def test_pictures_have_their_size_and_a_description(page: Path) -> None:
    for tag, attributes in read(page).tags:
        if tag == 'img':
            size = Image.open(page.parent / attributes['src']).size
            assert size == (int(attributes['width']), int(attributes['height']))
            assert size[0] <= 760
            assert 'Rows: teacher, <student>. Columns: a, b.' in attributes['alt']


def test_texts_and_numbers(page: Path) -> None:
    text = ' '.join(read(page).text)
    for wanted in ('A & B', '<neck>', 'a/b <c>', 'A <text>.', '40.0%', 'as the teacher'):
        assert wanted in text
    rows = page.read_text(encoding='utf-8').split('<tbody>')[1].split('</tbody>')[0]
    cells = [re.findall('<td>(.*?)</td>', row) for row in rows.strip().split('\n')]
    assert cells[0][1:] == ['40.0%', '30.0%', '80.0%', '90.0%'] and cells[1][1:] == [''] * 4


def test_names_of_files():
    assert file_name('a/b <c>') == 'a-b-c' and file_name('..') == 'image'
    assert file_name('explanations-neck[0], map 1') == 'explanations-neck-0-map-1'
    assert file_name('backbone[-1]@input') == 'backbone-1-input'


def look(page: Path, profile: Path, *arguments: str) -> str:
    """Opens a page in a browser without a window; returns its output."""
    command = [
        CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr', '--v=0',
        f'--user-data-dir={profile}', *arguments, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium on the PATH')
@pytest.mark.parametrize('width', [1280, 390])
def test_in_a_browser(page: Path, tmp_path: Path, width: int) -> None:
    """No console message; and the page is no wider than the window (a frame shows that)."""
    frame = tmp_path / 'frame.html'
    frame.write_text(
        f'<iframe id="f" style="width:{width}px;height:900px" src="{page.as_uri()}"></iframe>'
        '<script>onload = () => { const d = f.contentDocument; document.title = '
        '[d.documentElement.scrollWidth, f.clientWidth, '
        '[...d.images].filter(i => !i.complete || !i.naturalWidth).length].join(" "); }</script>'
    )
    command = ('--allow-file-access-from-files', '--virtual-time-budget=3000', '--dump-dom')
    said = look(frame, tmp_path / 'browser', *command)
    assert 'CONSOLE' not in said
    needed, there, broken = map(int, re.search(r'<title>(.*?)</title>', said)[1].split())
    assert needed <= there and broken == 0

    shot = tmp_path / 'shot.png'
    said = look(
        page, tmp_path / 'browser', f'--window-size={max(width, 500)},900', f'--screenshot={shot}'
    )
    assert 'CONSOLE' not in said
    assert np.asarray(Image.open(shot)).std() > 5
