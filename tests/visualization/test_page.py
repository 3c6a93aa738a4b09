"""The page: self-contained, with links that lead to files, and without errors in a browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmkd_plugin.visualization import Page, Picture
from mmkd_plugin.visualization.figure import Cell, Grid
from mmkd_plugin.visualization.page import file_name
from tests.browser import check_in_browser, needs_browser


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


@needs_browser
@pytest.mark.parametrize('width', [1280, 390])
def test_in_a_browser(page: Path, tmp_path: Path, width: int) -> None:
    check_in_browser(page, tmp_path, width)
