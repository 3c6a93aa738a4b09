"""The files by which mim finds the recipes: up to date, and as mim reads them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tools.tool_runs import load_tool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def index() -> list[dict[str, Any]]:
    """What the files hold that the index imports."""
    names = yaml.safe_load((ROOT / 'model-index.yml').read_text(encoding='utf-8'))['Import']
    return [yaml.safe_load((ROOT / name).read_text(encoding='utf-8')) for name in names]


def test_the_files_are_up_to_date():
    tool = load_tool('make_metafiles')
    stale = [
        path.relative_to(ROOT).as_posix()
        for path, text in tool.files().items()
        if not path.is_file() or path.read_text(encoding='utf-8') != text
    ]
    assert not stale, 'run python tools/make_metafiles.py'
    extra = set(ROOT.glob('configs/**/metafile.yml')) - set(tool.files())
    assert not extra


def test_each_recipe_is_named_once(index):
    plain = ('_base_', 'bccd', 'camvid', 'digit_scenes')
    recipes = [
        path.relative_to(ROOT).as_posix()
        for path in ROOT.glob('configs/*/*.py')
        if path.parent.name not in plain
    ]
    models = [model for one in index for model in one['Models']]
    assert sorted(model['Config'] for model in models) == sorted(recipes)
    assert set(Counter(model['Name'] for model in models).values()) == {1}
    assert all(Path(model['Config']).stem == model['Name'] for model in models)


def test_mim_can_make_a_table_of_them(index):
    """mim reads the first entry of each list, and looks collections up by name."""
    collections = [one for file in index for one in file['Collections']]
    names = [one['Name'] for one in collections]
    assert len(set(names)) == len(names)
    for one in [*collections, *(model for file in index for model in file['Models'])]:
        assert one.get('In Collection', one['Name']) in names
        assert all(one['Metadata'].values())
    models = [model for file in index for model in file['Models']]
    assert {'Teacher', 'Training Data'} >= {key for model in models for key in model['Metadata']}
    teachers = {model['Metadata'].get('Teacher') for model in models}
    assert {'pspnet_r101-d8_4xb2-80k_cityscapes-512x1024', 'rtmdet_l_8xb32-300e_coco'} <= teachers
