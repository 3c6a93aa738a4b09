#!/usr/bin/env python
"""Convert BCCD, blood cells with boxes for detection, to COCO's format.

SRC is a clone of https://github.com/Shenggan/BCCD_Dataset, or the folder BCCD in it, in the layout
of VOC: 205 images for training, 87 for validation and 72 for testing, of 640×480 pixels, with red
cells (RBC), white cells (WBC) and platelets.

    git clone https://github.com/Shenggan/BCCD_Dataset
    python tools/dataset_converters/bccd.py BCCD_Dataset --out data/bccd

It writes these files, which `configs/_base_/datasets/bccd-256x192.py` reads::

    data/bccd
    ├── img_dir/{train,val,test}/NAME.png       images, RGB
    └── annotations/{train,val,test}.json       boxes

Images and boxes are reduced to --size here, once, because reading large images takes a good part of
the time of a small model. --size 640x480 keeps them as they are. Boxes without area are left out.

The licence of the images is MIT.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

sys.path.append(str(Path(__file__).resolve().parents[2]))  # from a clone that is not installed

from mmkd_plugin import converting
from mmkd_plugin.cli import UsageError, plain_errors
from mmkd_plugin.converting import SPLITS, Size, read_image, text_of
from mmkd_plugin.words import did_you_mean, some

CLASSES = ('RBC', 'WBC', 'Platelets')
EDGES = ('xmin', 'ymin', 'xmax', 'ymax')


@dataclass(frozen=True)
class Labelled:
    """An image and its boxes.

    Args:
        name (str): File name without its ending.
        size (tuple[int, int]): Width and height, as the annotation says.
        boxes (list[tuple]): Class, left, top, right, bottom of each, in pixels.
        dropped (int): How many boxes without area were left out.
    """

    name: str
    size: Size
    boxes: list[tuple[str, float, float, float, float]]
    dropped: int


def names_of(root: Path, split: str) -> list[str]:
    """The names of the images of a split.

    Args:
        root (Path): The folder BCCD.
        split (str): ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        UsageError: If there is none, or one twice.
    """
    path = root / 'ImageSets' / 'Main' / f'{split}.txt'
    names = path.read_text(encoding='utf-8').split()
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise UsageError(f'{path} lists {f"{twice[0]} twice" if twice else "no image"}')
    return names


def refuse_shared(names: dict[str, list[str]]) -> None:
    """Refuses an image that is in two splits.

    Args:
        names (dict[str, list[str]]): The names of each split.

    Raises:
        UsageError: If there is one.
    """
    first: dict[str, str] = {}
    for split, found in names.items():
        for name in found:
            if name in first:
                raise UsageError(f'{name} is in two lists, {first[name]}.txt and {split}.txt')
            first[name] = split


def read_boxes(root: Path, name: str) -> Labelled:
    """The boxes of an image.

    The numbers stay as they are. VOC counts pixels from 1, but the tool with which BCCD was
    labelled writes the edges of the boxes, counted from 0.

    Args:
        root (Path): The folder BCCD.
        name (str): File name of the image without its ending.

    Raises:
        UsageError: If the annotation cannot be read, or has a class or box that cannot be used.
    """
    path = root / 'Annotations' / f'{name}.xml'
    if not path.is_file():
        raise UsageError(f'{root / "JPEGImages" / name}.jpg has no annotation {path}')
    boxes, dropped = [], 0
    try:
        tree = ElementTree.parse(path)
        width, height = (int(_text(tree, f'size/{key}')) for key in ('width', 'height'))
        objects = [
            (_text(one, 'name'), *(float(_text(one, f'bndbox/{key}')) for key in EDGES))
            for one in tree.findall('object')
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise UsageError(f'{path} cannot be read as an annotation of VOC: {error}') from error
    for kind, left, top, right, bottom in objects:
        if kind not in CLASSES:
            raise UsageError(
                f'{path} has the class {kind}; BCCD has {some(CLASSES)}'
                f'{did_you_mean(kind, CLASSES)}'
            )
        if not (0 <= left <= right <= width and 0 <= top <= bottom <= height):
            box = [left, top, right, bottom]
            raise UsageError(
                f'{path}: the box {box} (xmin, ymin, xmax, ymax) does not lie in the image of '
                f'{text_of((width, height))} pixels'
            )
        if left < right and top < bottom:
            boxes.append((kind, left, top, right, bottom))
        else:
            dropped += 1
    return Labelled(name, (width, height), boxes, dropped)


def _text(node: Any, key: str) -> str:
    text = node.findtext(key)
    if text is None:
        raise ValueError(f'it has no {key}')
    return text.strip()


def converted(
    root: Path, splits: dict[str, list[Labelled]], size: Size
) -> Iterator[tuple[str, bytes]]:
    """Yields each file to write as (path below the folder, bytes)."""
    for split, found in splits.items():
        for one in found:
            path = root / 'JPEGImages' / f'{one.name}.jpg'
            image = read_image(path)
            if image.size != one.size:
                raise UsageError(
                    f'{path} has {text_of(image.size)} pixels, and its annotation says '
                    f'{text_of(one.size)}'
                )
            yield f'img_dir/{split}/{one.name}.png', converting.shrunk(path, image, size)
        yield f'annotations/{split}.json', coco_json(found, size)


def coco_json(found: list[Labelled], size: Size) -> bytes:
    """The COCO file of a split.

    Args:
        found (list[Labelled]): Its images.
        size (tuple[int, int]): Width and height of the images that are written.
    """
    images, annotations = [], []
    for number, one in enumerate(found):
        images.append(
            dict(id=number, file_name=f'{one.name}.png', width=size[0], height=size[1], license=1)
        )
        x, y = (new / old for new, old in zip(size, one.size))
        for kind, left, top, right, bottom in one.boxes:
            box = [left * x, top * y, (right - left) * x, (bottom - top) * y]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=number,
                    category_id=CLASSES.index(kind) + 1,
                    bbox=[round(value, 3) for value in box],
                    area=round(box[2] * box[3], 3),
                    iscrowd=0,
                )
            )
    content = dict(
        info=dict(description='BCCD, https://github.com/Shenggan/BCCD_Dataset'),
        licenses=[dict(id=1, name='MIT', url='https://opensource.org/license/mit')],
        images=images,
        annotations=annotations,
        categories=[dict(id=n, name=name) for n, name in enumerate(CLASSES, start=1)],
    )
    return json.dumps(content, separators=(',', ':')).encode()


def main() -> None:
    """Run the tool."""
    parser = converting.converter_arguments(
        __doc__, 'clone of BCCD_Dataset, or BCCD in it', 'data/bccd', '256x192'
    )
    args = parser.parse_args()
    with plain_errors():
        lists = [f'ImageSets/Main/{split}.txt' for split in SPLITS]
        root = converting.find_root(args.source, 'BCCD', ['Annotations', 'JPEGImages', *lists])
        converting.check_new(args.out)
        names = {split: names_of(root, split) for split in SPLITS}
        refuse_shared(names)
        splits = {split: [read_boxes(root, name) for name in names[split]] for split in SPLITS}
        total = sum(map(len, splits.values())) + len(SPLITS)
        converting.write(args.out, converted(root, splits, args.size), total)
    dropped = {one.name: one.dropped for found in splits.values() for one in found if one.dropped}
    if dropped:
        print(f'{sum(dropped.values())} boxes without area left out, in {some(dropped)}')
    counts = ', '.join(f'{len(splits[split])} {split}' for split in SPLITS)
    print(f'{args.out}: {counts} images of {text_of(args.size)} pixels')


if __name__ == '__main__':
    main()
