"""Errors of reading checkpoints: why a file cannot be read, in a sentence, and what to do."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from mmkd_plugin.beside import beside_a_config
from mmkd_plugin.words import first_line, path_text, some

SUFFIXES = ('.pth', '.pt', '.ckpt', '.bin', '.safetensors')
"""Endings of the files that hold checkpoints."""

#: How many files are named although no name is similar.
FEW = 5


class CheckpointError(ValueError):
    """A checkpoint that exists but cannot be used; the message says why and what to do."""


def nearest_names(path: str | Path, suffixes: Iterable[str] = ()) -> str:
    """Names existing files that a wrong path may have meant.

    Args:
        path (str | Path): The missing file.
        suffixes (Iterable[str]): Endings of the files to name when no name is similar and there
            are few. Defaults to ``()``.

    Returns:
        str: A clause that begins with ``'; '``.
    """
    path = Path(path).expanduser()
    folder = path.parent
    if clause := beside_a_config(path):
        return clause
    if not folder.is_dir():
        existing = next((p for p in folder.parents if p.is_dir()), Path())
        return f'; the folder {folder} does not exist either, only {existing.resolve()} does'
    names = sorted(entry.name for entry in folder.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    others = [name for name in names if name.endswith(tuple(suffixes))]
    if not near and len(others) <= FEW:
        near = others
    elif not near:
        return f'; no name in {folder.resolve()} is like it'
    if not near:
        return f'; nothing of the kind is in {folder.resolve()}'
    return f'; in {folder.resolve()} there is {some(near)}'


def existing_file(path: str) -> Path:
    """The file of a checkpoint.

    Args:
        path (str): Its path.

    Raises:
        CheckpointError: If it is no file.
        FileNotFoundError: If there is none; the message names others.
    """
    if not path:
        raise CheckpointError("a checkpoint is named '', which is no file")
    file = Path(path).expanduser()
    if file.is_file():
        return file
    if file.is_dir():
        raise CheckpointError(f'{path} is a folder{_checkpoints_in(file)}: name the file')
    raise FileNotFoundError(
        f'no checkpoint at {path_text(path)}{nearest_names(file, SUFFIXES)}. Expected a path from '
        'the folder you are in, or a URL'
    )


def _checkpoints_in(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(SUFFIXES))
    return f'; in {folder.resolve()} there is {some(names)}' if names else ' without checkpoints'


_REFUSED = re.compile(
    r'(?:GLOBAL|Unsupported class) ([\w.<>]*\w)|unrecognized function (.+?)$', re.M
)


def explain(path: str, error: Exception) -> str:
    """Says in one sentence why a loader raised an error.

    Args:
        path (str): The file or the URL.
        error (Exception): What the loader raised.

    Returns:
        str: A sentence that begins with the path.
    """
    text = str(error)
    refused = _REFUSED.search(text)
    if refused is not None:
        return _explain_refusal(path, refused[1] or refused[2])
    if isinstance(error, MemoryError) or 'MemoryError' in text or "can't allocate" in text:
        return f'{path} asks for more memory than there is: {first_line(error)}'
    if 'legacy .tar' in text:
        return (
            f'{path} is in the format of torch before 0.1.10, which cannot be read without running '
            f'code from it: load and save it once with torch, where nothing can be harmed'
        )
    if 'TorchScript' in text:
        return f'{path} is a TorchScript program, not a checkpoint: save its `state_dict()`'
    # torch surrounds the reason with advice on `weights_only`, which does not help here.
    reason = first_line(error, prefer='Unsupported operand')
    if '://' in path or isinstance(error, PermissionError):
        return f'{path} could not be read: {reason}'
    return f'{_explain_damage(Path(path))} ({reason})'


def _explain_refusal(path: str, what: str) -> str:
    program = (
        f'import torch; ckpt = torch.load({path!r}, weights_only=False); '
        "torch.save({'state_dict': ckpt['state_dict']}, 'weights.pth')"
    )
    return (
        f'{path} holds `{what}`, which is not data: to load it would run code that the file '
        f'chooses, so it was refused. If you trust where the file comes from, save its weights '
        f'alone, in a place where nothing can be harmed: python -c {shlex.quote(program)}'
    )


def _explain_damage(file: Path) -> str:
    size = file.stat().st_size
    with file.open('rb') as stream:
        head = stream.read(64)
    if size == 0:
        return f'{file} is empty'
    if head.startswith(b'version https://git-lfs'):
        return f'{file} is a Git LFS pointer, not the file itself: run `git lfs pull`'
    if head.lstrip().lower().startswith((b'<!doctype', b'<html', b'<?xml')):
        return f'{file} ({size} bytes) is a web page, not a checkpoint: the download went wrong'
    if head[0] == 0x80 and head[1:2] > b'\x02':
        return (
            f'{file} is a plain pickle, not a file of `torch.save`, and cannot be loaded safely: '
            f'if you trust it, load it yourself and save its weights with `torch.save`'
        )
    if head.startswith((b'PK\x03\x04', b'\x80')) or file.suffix in SUFFIXES:
        return (
            f'{file} is truncated or corrupt: its {size} bytes ({size / 2**20:.1f} MiB) are not a '
            f'whole checkpoint; copy or download it again'
        )
    return f'{file} ({size} bytes) is not a checkpoint'
