"""Files of a foundation model: what lies in a folder, and reading it without running its code."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

from torch import Tensor

from mmkd_plugin.checkpoint import nearest_names, read_checkpoint, state_dict_of
from mmkd_plugin.words import first_line, path_text, short, some

#: The files of weights in a folder, the safe ones first. Others are read without running code.
WEIGHTS = ('model.safetensors', 'pytorch_model.bin')
SHARDS = tuple(f'{name}.index.json' for name in WEIGHTS)


def none_given(config: Any) -> None:
    """Refuses a ``config`` for a library whose files say the model themselves."""
    if config is not None:
        raise ValueError(f'config: the files at `path` say the model, got {short(config)}')


def existing(path: str, get: str) -> Path:
    """Returns the folder or the file of a model.

    Args:
        path (str): Where it should be.
        get (str): The command that gets it.

    Raises:
        FileNotFoundError: If there is nothing.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise FileNotFoundError(
            f'path: no foundation model at {path_text(path)}{nearest_names(found)}. Expected a '
            f'folder or a file of this machine. Nothing is downloaded by itself; to get it: {get}'
        )
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds one object.

    Raises:
        ValueError: If it is something else.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} cannot be read as JSON: {first_line(error)}') from error
    if not isinstance(content, dict):
        raise ValueError(f'{path} holds a {type(content).__name__}, not an object')
    return content


def beside(path: Path, name: str, what: str) -> Path:
    """Returns a file of the folder that a path names, or that its file lies in.

    Raises:
        FileNotFoundError: If it is missing.
    """
    folder = path if path.is_dir() else path.parent
    file = folder / name
    if not file.is_file():
        there = sorted(entry.name for entry in folder.iterdir())
        raise FileNotFoundError(
            f'{folder} has no {name}, which says {what}; there is '
            f'{some(there, limit=5) if there else "nothing"}'
        )
    return file


def read_weights(path: Path) -> OrderedDict[str, Tensor]:
    """Reads the weights of a model, in one file or several.

    Args:
        path (Path): The file, or a folder with the files that transformers writes.

    Returns:
        OrderedDict[str, Tensor]: The weights.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If a file is damaged, or holds something else than data.
    """
    weights: OrderedDict[str, Tensor] = OrderedDict()
    for file in [path] if path.is_file() else _files_in(path):
        weights.update(state_dict_of(read_checkpoint(file), file))
    return weights


def _files_in(folder: Path) -> list[Path]:
    for whole, index in zip(WEIGHTS, SHARDS, strict=True):
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / index).is_file():
            return [folder / name for name in _shards(folder / index)]
    others = sorted(folder.glob('*.safetensors'))
    if len(others) == 1:
        return others
    found = some((file.name for file in others), limit=5)
    raise FileNotFoundError(
        f'{folder} has no weights: expected {WEIGHTS[0]}'
        + (f', and there is {found}: let `path` name the file' if others else '')
    )


def _shards(index: Path) -> list[str]:
    names = read_json(index).get('weight_map')
    names = list(dict.fromkeys(names.values())) if isinstance(names, dict) else []
    if not names or not all(isinstance(one, str) and Path(one).name == one for one in names):
        raise ValueError(f'{index} is damaged: its `weight_map` does not name files beside it')
    return names
