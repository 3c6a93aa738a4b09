#!/usr/bin/env python
"""Write DigitScenes, a small data set for segmentation and detection, without a download.

Every pixel is a photographed or scanned one that scikit-learn carries: the 1,797 handwritten
digits of ``load_digits`` are drawn at random scale, rotation, contrast and overlap into crops of
the two photographs of ``load_sample_images``. The validation scenes use digits, and regions of the
photographs, that no training scene uses.

    python tools/make_digit_scenes.py --out data/digit_scenes --train 600 --val 100

It writes these files, in the formats that ``BaseSegDataset`` and ``CocoDataset`` read::

    data/digit_scenes
    ├── img_dir/{train,val}/00000.png               scenes, RGB
    ├── ann_dir/{train,val}/00000.png               palette masks: 0 none, d+1 digit d, 255 ignore
    ├── annotations/instances_{train,val}.json      COCO boxes and instance masks of the same digits
    └── manifest.json                               arguments, settings, SHA-256 of every other file

The same arguments give the same bytes (with the same Pillow), and scene i of a split does not
depend on the number of scenes. An existing folder is never overwritten: if it is complete and was
made with the same arguments, there is nothing to do; otherwise the tool says what is wrong.

The digits are those of UCI's "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak);
the photographs are by danielbuechele and vultilion on Flickr, CC BY 2.0.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # from a clone that is not installed

import numpy as np

from mmkd_plugin.__main__ import as_typed
from mmkd_plugin.digit_scenes import IGNORE, SPLITS, Instance, Sources, compose_scene, settings
from mmkd_plugin.saving import whole_folder

LARGEST = 4096  # side of a scene, pixels: a larger one takes GB of memory
CLASSES = ('background', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
PALETTE = (
    (0, 0, 0),
    (31, 119, 180),
    (255, 127, 14),
    (44, 160, 44),
    (214, 39, 40),
    (148, 103, 189),
    (140, 86, 75),
    (227, 119, 194),
    (127, 127, 127),
    (188, 189, 34),
    (23, 190, 207),
)
PHOTO_LICENSE = {'name': 'CC BY 2.0', 'url': 'https://creativecommons.org/licenses/by/2.0/'}
FORMAT = 'mmkd digit scenes'
VERSION = 1  # raise it when other pixels are drawn from the same settings
FOLDERS = ('img_dir', 'ann_dir', 'annotations')
MANIFEST = 'manifest.json'
MARKER = '.make_digit_scenes'  # lies in <out>.partial and says that this tool made it


class UserError(Exception):
    """Something that the user can put right; the message says it all.

    Args:
        message (str): What is wrong and what to do.
        code (int): Exit status. 2: choose other arguments; 1: the folder is damaged.
            Defaults to 2.
    """

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


def load_sources() -> Sources:
    """Read the digits and the photographs out of scikit-learn's installation."""
    try:
        from sklearn.datasets import load_digits, load_sample_image
    except ImportError as error:
        raise UserError(
            f'The digits and photographs come with scikit-learn and Pillow ({error}): '
            'pip install scikit-learn pillow'
        ) from None
    digits = load_digits()
    photos = tuple(load_sample_image(name) for name in ('china.jpg', 'flower.jpg'))
    return Sources(digits.images / 16.0, digits.target, photos)


# ----------------------------------------------------------------------------- encoding


def encode_image(image: np.ndarray) -> bytes:
    """PNG of an RGB array."""
    from PIL import Image

    return _png(Image.fromarray(image))


def encode_mask(labels: np.ndarray) -> bytes:
    """PNG with a palette: the pixel values are the classes, the colours are for people."""
    from PIL import Image

    colours = np.zeros((256, 3), np.uint8)
    colours[: len(PALETTE)] = PALETTE
    colours[IGNORE] = 255
    image = Image.fromarray(labels)
    image.putpalette(colours.tobytes())  # turns mode L into P
    return _png(image)


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format='PNG')
    return buffer.getvalue()


def encode_rle(mask: np.ndarray) -> dict[str, list[int]]:
    """COCO's uncompressed run lengths: down the columns, beginning with a run of zeros.

    ``pycocotools`` and mmdet read this form as well as the compressed one, and writing it needs
    neither of them.
    """
    flat = mask.flatten(order='F').astype(np.int8)
    changes = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    edges = [0, *changes, flat.size]
    return {'size': list(mask.shape), 'counts': [b - a for a, b in itertools.pairwise(edges)]}


def bounding_box(mask: np.ndarray) -> list[int]:
    """The tight box of a mask as COCO writes it: left, top, width, height."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def coco_json(names: list[str], scenes: list[list[dict[str, Any]]], size: int) -> bytes:
    """The COCO file of one split.

    Args:
        names (list[str]): File name of each image, relative to the split's image folder.
        scenes (list[list[dict]]): The annotations of each image, as ``coco_instance`` makes them.
        size (int): Side of the images.
    """
    images = [
        {'id': i, 'file_name': name, 'width': size, 'height': size, 'license': 1}
        for i, name in enumerate(names)
    ]
    owned = [(i, annotation) for i, scene in enumerate(scenes) for annotation in scene]
    annotations = [
        {'id': number, 'image_id': image_id, **annotation}
        for number, (image_id, annotation) in enumerate(owned, start=1)
    ]
    categories = [
        {'id': digit, 'name': name, 'supercategory': 'digit'}
        for digit, name in enumerate(CLASSES[1:], start=1)
    ]
    content = {
        'info': {
            'description': 'DigitScenes: handwritten digits by UCI (E. Alpaydin, C. Kaynak) drawn '
            'into photographs by danielbuechele and vultilion (Flickr)'
        },
        'licenses': [{'id': 1, **PHOTO_LICENSE}],
        'images': images,
        'annotations': annotations,
        'categories': categories,
    }
    return json.dumps(content, separators=(',', ':')).encode()


def coco_instance(instance: Instance) -> dict[str, Any]:
    """The COCO annotation of a digit, still without its ids.

    ``original`` is not a COCO key; readers skip it. It is the digit's index in ``load_digits``.
    """
    return {
        'category_id': instance.label + 1,
        'bbox': bounding_box(instance.mask),
        'area': int(instance.mask.sum()),
        'segmentation': encode_rle(instance.mask),
        'iscrowd': 0,
        'original': instance.original,
    }


# ----------------------------------------------------------------------------- the folder


@dataclass(frozen=True)
class Arguments:
    """The arguments that, with the settings of the scenes, decide what is written."""

    train: int
    val: int
    size: int
    seed: int


def generate(arguments: Arguments, sources: Sources) -> Iterator[tuple[str, bytes]]:
    """Yield every file but the manifest as (path below the folder, bytes)."""
    for split in SPLITS:
        names, annotations = [], []
        for index in range(getattr(arguments, split)):
            name = f'{index:05d}.png'
            scene = compose_scene(sources, split, index, arguments.size, arguments.seed)
            yield f'img_dir/{split}/{name}', encode_image(scene.image)
            yield f'ann_dir/{split}/{name}', encode_mask(scene.labels)
            names.append(name)
            annotations.append([coco_instance(instance) for instance in scene.instances])
        coco = coco_json(names, annotations, arguments.size)
        yield f'annotations/instances_{split}.json', coco


def write(out: Path, arguments: Arguments) -> None:
    """Write the data set next to ``out`` and move it there once it is complete.

    Args:
        out (Path): A folder that does not exist or is empty.
        arguments (Arguments): What to write.
    """
    from rich.console import Console
    from rich.progress import track

    files = generate(arguments, load_sources())
    total = 2 * (arguments.train + arguments.val) + len(SPLITS)
    hashes = {}
    with whole_folder(out, MARKER) as partial:
        console = Console(stderr=True)
        shown = dict(console=console, disable=not console.is_terminal)
        for name, content in track(files, 'Drawing scenes', total, **shown):
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            hashes[name] = hashlib.sha256(content).hexdigest()
        manifest = {
            'format': FORMAT,
            'version': VERSION,
            'arguments': asdict(arguments),
            'settings': settings(),
            'files': hashes,
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + '\n', encoding='utf-8')


def check(out: Path, arguments: Arguments) -> bool:
    """Look at the folder as it is.

    Args:
        out (Path): The folder asked for.
        arguments (Arguments): What it should hold.

    Returns:
        bool: True if it is complete and right, False if it has to be written.

    Raises:
        UserError: If it holds anything else.
    """
    if not out.exists():
        return False
    if not out.is_dir():
        raise UserError(f'{out} is a file; choose another --out.')
    (out / MARKER).unlink(missing_ok=True)  # of a run that was killed when all was there
    present = sorted(path.name for path in out.iterdir())
    if not present:
        return False
    ours = any(folder in present for folder in FOLDERS)
    if MANIFEST in present:
        manifest = read_manifest(out / MANIFEST)
        if manifest is not None:
            refuse_other_scenes(out, manifest, arguments)
            verify_files(out, manifest['files'])
            return True
    if ours:
        raise UserError(
            f'{out} is incomplete: its {MANIFEST} is missing or damaged. {start_over(out)}', code=1
        )
    raise UserError(
        f"{out} holds something else ('{present[0]}') and is left alone; choose another --out."
    )


def start_over(out: Path) -> str:
    """Say what to do about a damaged folder."""
    return f'Remove the folder {out} and run the same command again.'


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Read a manifest.

    Args:
        path (Path): The file.

    Returns:
        dict | None: Its content, or None if it is not a manifest of this tool.
    """
    try:
        manifest = json.loads(path.read_text(encoding='utf-8'))
    except ValueError:
        return None
    if not isinstance(manifest, dict) or manifest.get('format') != FORMAT:
        return None
    parts = (manifest.get(key) for key in ('arguments', 'settings', 'files'))
    return manifest if all(isinstance(part, dict) for part in parts) else None


def refuse_other_scenes(out: Path, manifest: dict[str, Any], arguments: Arguments) -> None:
    """Raise if the scenes were made with other arguments, settings or code.

    Args:
        out (Path): The folder.
        manifest (dict): Its manifest.
        arguments (Arguments): What is asked for.
    """
    made_with, made_under = manifest['arguments'], manifest['settings']
    changed = {
        name: value for name, value in asdict(arguments).items() if made_with.get(name) != value
    }
    differ = [
        f'--{name} is {made_with.get(name)} there and {value} here'
        for name, value in changed.items()
    ]
    differ += [
        f'{name.upper()} is {made_under.get(name)} there and {value} here'
        for name, value in settings().items()
        if made_under.get(name) != value
    ]
    if manifest.get('version') != VERSION:
        differ.append(f'VERSION is {manifest.get("version")} there and {VERSION} here')
    if differ:
        suffix = '_'.join(f'{name}{value}' for name, value in changed.items()) or 'new'
        raise UserError(
            f'{out} holds other scenes ({"; ".join(differ)}) and is left alone; '
            f'choose another --out, for example --out {out}_{suffix}'
        )


def verify_files(out: Path, files: dict[str, str]) -> None:
    """Raise if a file is missing, changed or foreign.

    Args:
        out (Path): The folder.
        files (dict[str, str]): SHA-256 by path below the folder.
    """
    for name, expected in files.items():
        path = out / name
        if not path.is_file():
            raise UserError(f'{path} is missing. {start_over(out)}', code=1)
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise UserError(f'{path} was changed or is damaged. {start_over(out)}', code=1)
    for folder in FOLDERS:  # the datasets read every image in there
        for path in sorted((out / folder).rglob('*')):
            known = path.is_dir() or path.relative_to(out).as_posix() in files
            if not known and not path.name.startswith('.'):
                raise UserError(f'{path} is not part of the scenes; move it away.', code=1)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        description=as_typed(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--out', type=Path, default=Path('data/digit_scenes'), help='folder (data/digit_scenes)'
    )
    parser.add_argument('--train', type=int, default=600, help='training scenes (600)')
    parser.add_argument('--val', type=int, default=100, help='validation scenes (100)')
    parser.add_argument('--size', type=int, default=128, help='side of the scenes in pixels (128)')
    parser.add_argument('--seed', type=int, default=0, help='other seed, other scenes (0)')
    args = parser.parse_args(argv)
    for name, least in (('train', 1), ('val', 1), ('size', 64), ('seed', 0)):
        if getattr(args, name) < least:
            parser.error(f'--{name} must be at least {least}, not {getattr(args, name)}')
    if args.size > LARGEST:
        parser.error(f'--size must be at most {LARGEST}, not {args.size}')
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    args = parse_args(argv)
    arguments = Arguments(args.train, args.val, args.size, args.seed)
    try:
        if check(args.out, arguments):
            print(f'{args.out} is already there and complete.')
            return 0
        write(args.out, arguments)
    except UserError as error:
        print(f'Error: {error}', file=sys.stderr)
        return error.code
    except FileExistsError as error:
        print(f'Error: {error}', file=sys.stderr)
        return 2
    except OSError as error:
        print(f'Error: cannot read or write {args.out}: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('Interrupted; the same command starts over.', file=sys.stderr)
        return 130
    print(f'{args.out}: {args.train} training and {args.val} validation scenes.')
    return 0


if __name__ == '__main__':
    sys.exit(main())
