"""The pages of the documentation, and their fenced blocks, for the tests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    page for pattern in ('*.md', 'docs/**/*.md', 'configs/**/*.md') for page in ROOT.glob(pattern)
)
FENCE = re.compile(r'^```([\w{}-]*)\n(.*?)^```$', re.M | re.S)
MARK = re.compile(r'<!-- not run: ([^>]+?) -->\n\Z')


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        page (str): The page, from the root of the repository.
        line (int): Where it begins.
        language (str): What stands behind its fence.
        text (str): What it holds.
        reason (str): Why it is not run, from a comment right above it: ``<!-- not run: ... -->``.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str

    @property
    def place(self) -> str:
        return f'{self.page}:{self.line}'


def text_of(page: Path) -> str:
    return page.read_text(encoding='utf-8')


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text, found = text_of(page), []
    for match in FENCE.finditer(text):
        line = text.count('\n', 0, match.start()) + 1
        mark = MARK.search(text, 0, match.start())
        found.append(Block(name_of(page), line, match[1], match[2], mark[1] if mark else ''))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def blocks(*languages: str) -> list[Any]:
    """The texts of blocks, as parameters with the page and the line as their name."""
    return [pytest.param(b.text, id=b.place) for b in BLOCKS if b.language in languages]
