"""The common parts of the tools that convert a data set: arguments, reading, shrinking, writing."""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image
from rich.console import Console

from mmkd_plugin.__main__ import as_typed
from mmkd_plugin.cli import UsageError, check_folder, progress_bar
from mmkd_plugin.saving import whole_folder
from mmkd_plugin.words import some

MARKER = '.mmkd_converting'
SPLITS = ('train', 'val', 'test')

Size = tuple[int, int]


def image_size(text: str) -> Size:
    """Width and height from the command line.

    Args:
        text (str): Such as ``'240x180'``.

    Raises:
        argparse.ArgumentTypeError: If it is anything else.

    Examples:
        >>> image_size('240x180')
        (240, 180)
    """
    match = re.fullmatch(r'([1-9]\d{0,4})x([1-9]\d{0,4})', text)
    if match is None:
        raise argparse.ArgumentTypeError(f'WIDTHxHEIGHT in pixels, not {text}')
    return int(match[1]), int(match[2])


def text_of(size: Size) -> str:
    """A size as messages write it.

    Args:
        size (tuple[int, int]): Width and height.

    Examples:
        >>> text_of((240, 180))
        '240×180'
    """
    return f'{size[0]}×{size[1]}'


def converter_arguments(
    description: str, source: str, out: str, size: str
) -> argparse.ArgumentParser:
    """The arguments of a tool that converts a data set.

    Args:
        description (str): The docstring of the tool.
        source (str): What the data set is, for the help.
        out (str): Default of ``--out``.
        size (str): Default of ``--size``.
    """
    parser = argparse.ArgumentParser(
        description=as_typed(description), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', metavar='SRC', type=Path, help=source)
    parser.add_argument('--out', default=out, help=f'folder to write ({out}); must be new')
    parser.add_argument(
        '--size',
        type=image_size,
        default=size,
        metavar='WIDTHxHEIGHT',
        help=f'size of the images that are written ({size}); the proportions must be kept',
    )
    return parser


def find_root(source: Path, name: str, needed: Sequence[str]) -> Path:
    """The folder of a data set: the source, or the folder in it that has the data set's name.

    Args:
        source (Path): What the user named.
        name (str): Name of the data set's folder in a clone of its repository.
        needed (Sequence[str]): Folders and files that it must hold.

    Raises:
        UsageError: If something is missing.
    """
    if not source.is_dir():
        state = 'a file' if source.exists() else 'not there'
        raise UsageError(f'{source} is {state}; {name} is a folder')
    root = source / name if (source / name).is_dir() else source
    missing = [part for part in needed if not (root / part).exists()]
    if missing:
        raise UsageError(f'{root} is not {name}: it has no {some(missing)}')
    return root


def read_image(path: Path) -> Image.Image:
    """An image, decoded.

    Args:
        path (Path): Its file.

    Raises:
        UsageError: If there is none, or it cannot be decoded.
    """
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError:
        raise UsageError(f'there is no {path}') from None
    except (OSError, SyntaxError, ValueError) as error:
        reason = ' '.join(str(error).split())
        raise UsageError(f'{path} cannot be read as an image: {reason}') from error
    return image


def check_size(path: Path, image: Image.Image, size: Size) -> None:
    """Refuses an image that would be enlarged or distorted.

    Args:
        path (Path): Its file.
        image (Image.Image): The image.
        size (tuple[int, int]): Width and height that it shall have.

    Raises:
        UsageError: If it is smaller, or has other proportions.
    """
    (width, height), (to_width, to_height) = image.size, size
    here, wanted = f'{path} has {text_of(image.size)} pixels', f'--size {to_width}x{to_height}'
    if width < to_width or height < to_height:
        raise UsageError(f'{here}; {wanted} would enlarge it')
    if abs(width * to_height / (height * to_width) - 1) > 0.01:
        raise UsageError(f'{here}; {wanted} would change its proportions')


def shrunk(path: Path, image: Image.Image, size: Size) -> bytes:
    """A photograph as PNG, each pixel the mean of those that it covers.

    Args:
        path (Path): Its file, for messages.
        image (Image.Image): The image.
        size (tuple[int, int]): Width and height.

    Raises:
        UsageError: See :func:`check_size`.
    """
    check_size(path, image, size)
    return png(image.convert('RGB').resize(size, Image.Resampling.BOX))


def png(image: Image.Image) -> bytes:
    """The bytes of an image as PNG.

    Args:
        image (Image.Image): The image.
    """
    buffer = io.BytesIO()
    image.save(buffer, format='PNG')
    return buffer.getvalue()


def check_new(out: str) -> None:
    """Refuses a folder for the result that holds anything, or cannot be written.

    Args:
        out (str): The value of ``--out``.

    Raises:
        UsageError: If so.
    """
    check_folder(out, '--out')
    Path(out, MARKER).unlink(missing_ok=True)  # of a run that was killed when all was there
    if Path(out).is_dir() and any(Path(out).iterdir()):
        raise UsageError(
            f'--out {out} is not empty and is left alone; remove it or choose another folder'
        )


def write(out: str, files: Iterable[tuple[str, bytes]], total: int) -> None:
    """Writes a data set beside its folder and moves it there once it is whole.

    Args:
        out (str): A folder that does not exist or is empty.
        files (Iterable[tuple[str, bytes]]): Path below the folder and content of each file.
        total (int): How many files there are, for the progress bar.

    Raises:
        UsageError: If a file cannot be read or written.
        SystemExit: With 130, after Ctrl-C.
    """
    try:
        with whole_folder(out, MARKER) as partial, progress_bar(Console(stderr=True)) as progress:
            for name, content in progress.track(files, total, description='files'):
                path = partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    except OSError as error:
        told = f'cannot read or write {error.filename}: {error.strerror}'
        raise UsageError(told if error.errno is not None else str(error)) from error
    except KeyboardInterrupt:
        print('Interrupted; the same command starts over.', file=sys.stderr)
        raise SystemExit(130) from None
