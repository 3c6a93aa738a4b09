"""Write model-index.yml and a metafile.yml for each method from the recipes, for `mim search`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

sys.path.append(str(Path(__file__).resolve().parents[1]))  # from a clone that is not installed

import mmkd_plugin
from mmkd_plugin.saving import write_text

ROOT = Path(__file__).resolve().parents[1]

#: Folders of plain models, which are no recipes.
PLAIN = ('_base_', 'bccd', 'camvid', 'digit_scenes')

#: What the data of a recipe is called, by a part of its name.
DATA = {
    'ade20k': 'ADE20K',
    'bccd': 'BCCD',
    'camvid': 'CamVid',
    'cityscapes': 'Cityscapes',
    'coco': 'COCO',
    'digit-scenes': 'DigitScenes',
    'voc0712': 'Pascal VOC 2007 + 2012',
    'voc12aug': 'Pascal VOC 2012 + Aug',
}


def texts_of(recipe: Path) -> Iterator[str]:
    """The text of a recipe, and of the configs in this repository that it inherits."""
    text = recipe.read_text(encoding='utf-8')
    yield text
    for base in re.findall(r"^_base_ = \(?\s*'([^':]+)'", text, re.MULTILINE):
        yield from texts_of(recipe.parent / base)


def model_of(recipe: Path) -> dict[str, Any]:
    """The entry of a recipe."""
    name, text = recipe.stem, ''.join(texts_of(recipe))
    (data,) = {said for part, said in DATA.items() if part in name}
    metadata: dict[str, Any] = {'Training Data': data}
    teachers = re.findall(r"^ +config='([^']+)'", text, re.MULTILINE)
    if teachers:
        metadata['Teacher'] = Path(teachers[0].partition('::')[2] or teachers[0]).stem
    return {
        'Name': name,
        'In Collection': recipe.parent.name,
        'Config': recipe.relative_to(ROOT).as_posix(),
        'Metadata': metadata,
    }


def metafile(folder: Path) -> dict[str, Any]:
    """The content of the metafile of a method.

    Args:
        folder (Path): Its folder in ``configs/``.
    """
    recipes = sorted(folder.glob('*.py'))
    text = '\n'.join(recipe.read_text(encoding='utf-8') for recipe in recipes)
    names = dict.fromkeys(re.findall(r"type='mmkd_plugin\.(\w+)'", text))
    kinds = [getattr(mmkd_plugin, name) for name in names if name in mmkd_plugin.__all__]
    told = '\n'.join(kind.__doc__ or '' for kind in kinds)
    collection = {
        'Name': folder.name,
        'Metadata': {
            'Training Techniques': ['Knowledge Distillation'],
            'Losses': [name for name in names if name.endswith('Loss')],
        },
        'Paper': list(dict.fromkeys(re.findall(r'- paper: (\S+)', told))),
        'README': 'configs/README.md',
    }
    return {
        'Collections': [{key: value for key, value in collection.items() if value}],
        'Models': [model_of(recipe) for recipe in recipes],
    }


def files() -> dict[Path, str]:
    """What the files shall hold, by their paths."""
    folders = sorted(
        folder
        for folder in (ROOT / 'configs').iterdir()
        if folder.name not in PLAIN and any(folder.glob('*.py'))
    )
    index = {'Import': [f'configs/{folder.name}/metafile.yml' for folder in folders]}
    contents = {ROOT / 'model-index.yml': index}
    contents |= {folder / 'metafile.yml': metafile(folder) for folder in folders}
    return {
        path: yaml.safe_dump(content, sort_keys=False, width=1000, allow_unicode=True)
        for path, content in contents.items()
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    for path, text in files().items():
        write_text(path, text)


if __name__ == '__main__':
    main()
