"""Categories of COCO files, whatever else is in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmkd_plugin import categories
from mmkd_plugin.categories import categories_of, in_order_of_file

TWO = [
    dict(id=7, name='cat', supercategory='animal'),
    dict(id=2, name='Käse', keypoints=['a', 'b']),
]


@pytest.mark.parametrize(
    ('content', 'found'),
    [
        (dict(images=[], categories=TWO, annotations=[]), TWO),
        (dict(categories=TWO, annotations=[dict(attributes=dict(categories=['x', 'y']))]), TWO),
        (dict(categories=TWO, info=dict(said='"categories": no')), TWO),
        (dict(categories=[]), []),
        (dict(images=[]), []),
        ([], []),
    ],
)
@pytest.mark.parametrize('piece', [1, 7, categories.PIECE])
@pytest.mark.parametrize('ascii_only', [True, False])
def test_the_list_is_found(content: Any, found: list, piece: int, ascii_only: bool, tmp_path: Path,
                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(categories, 'PIECE', piece)
    file = tmp_path / 'boxes.json'
    file.write_text(json.dumps(content, ensure_ascii=ascii_only, indent=1), encoding='utf-8')
    assert categories_of(file) == found


def test_files_that_have_none(tmp_path: Path) -> None:
    file = tmp_path / 'boxes.json'
    file.touch()
    assert categories_of(file) == []
    file.write_text('{"categories": [{"id": 1, "na')
    with pytest.raises(ValueError, match='Unterminated'):
        categories_of(file)
    with pytest.raises(OSError, match='nowhere'):
        categories_of(tmp_path / 'nowhere.json')


@pytest.mark.parametrize(
    ('names', 'found'),
    [(('Käse', 'cat'), ('cat', 'Käse')), (['cat'], ('cat',)), (('cat', 'dog'), None), ((), ())],
)
def test_names_in_the_order_of_the_file(names: Any, found: Any) -> None:
    assert in_order_of_file(names, TWO) == found
