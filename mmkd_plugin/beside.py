"""Beside a config: modules of the user that it imports, and files that it names by its folder."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from pathlib import Path

from mmkd_plugin.libraries import PACKAGES, missing_module

#: Folders of the configs that this process has read, in their order.
_FOLDERS: dict[Path, None] = {}


def read_from(config: str | Path) -> None:
    """Notes that a config is read, for :func:`beside_a_config`.

    Args:
        config (str | Path): Its file.
    """
    _FOLDERS.setdefault(Path(config).resolve().parent)


def beside_a_config(path: str | Path) -> str:
    """Says what is at a path, or where a file is that was named from the folder of a config.

    All paths begin in the folder in which the command is typed, as with the stock tools.

    Args:
        path (str | Path): A path at which there is nothing, or a folder instead of a file, or a
            file instead of a folder.

    Returns:
        str: A clause that begins with ``'; '``, or ``''`` if it is not beside a config either.
    """
    path = Path(path)
    if path.exists():
        return (
            f'; it is a {"folder, and a file" if path.is_dir() else "file, and a folder"} is needed'
        )
    if path.is_absolute() or not path.name:
        return ''
    found = next((folder / path for folder in _FOLDERS if (folder / path).exists()), None)
    if found is None:
        return ''
    return f'; there is {found}: write this, or type the command in {found_in(found, path)}'


def found_in(found: Path, path: Path) -> Path:
    """The folder from which a path leads to a file.

    Examples:
        >>> found_in(Path('/a/b/c.py'), Path('b/c.py')).as_posix()
        '/a'
    """
    return found.parents[len(path.parts) - 1]


def reach_modules(error: ImportError, config: str | Path) -> bool:
    """Lets a module be imported that lies beside a config, or in the folder one is in.

    Both folders go to the end of ``sys.path``, so nothing that is installed is another one then.

    Args:
        error (ImportError): The error with which the module was not found.
        config (str | Path): The file of the config that imports it.

    Returns:
        bool: Whether it lies there, so that the import can be tried again.
    """
    return _reach([missing_module(error).partition('.')[0]], config)


def reach_imports(config: str | Path) -> None:
    """Does as :func:`reach_modules` for a pure-Python config, which imports nothing at first.

    Args:
        config (str | Path): Its file.
    """
    names = set()
    for node in ast.walk(ast.parse(Path(config).read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    _reach({name.partition('.')[0] for name in names}, config)


def _reach(names: Iterable[str], config: str | Path) -> bool:
    folders = list(dict.fromkeys([Path(config).resolve().parent, Path.cwd()]))
    new = [str(folder) for folder in folders if str(folder) not in sys.path]
    # A folder with the name of a library is a clone of it, which has the library inside.
    wanted = [name for name in names if name and name not in PACKAGES and not _is_found(name)]
    found = any(_is_module(folder, name) for folder in new for name in wanted)
    if found:
        sys.path.extend(new)
    return found


def _is_found(name: str) -> bool:
    """Whether a module is found already; a folder without Python files is none."""
    spec = None if name in sys.modules else PathFinder.find_spec(name)
    return name in sys.modules or (spec is not None and spec.origin is not None)


def _is_module(folder: str, name: str) -> bool:
    return Path(folder, f'{name}.py').is_file() or any(Path(folder, name).glob('*.py'))
