"""The differences between the OpenMMLab stacks, and between torch versions, in one place.

Two stacks share the import names ``mmengine``, ``mmcv``, ``mmdet`` and ``mmseg``: OpenMMLab's own
packages and a maintained fork. :func:`prepare` makes both behave alike where the plugin needs it:

* ``_base_ = ['mmseg::...']`` finds the configs of whichever package provides ``mmseg``;
* ``'mmkd::...'`` names a recipe of this package, in ``_base_`` and for ``Config.fromfile``;
* torch's safe loading accepts the content of mmengine's training checkpoints, so that resuming and
  testing work where ``torch.load`` refuses everything but tensors (torch 2.6 and later).

:func:`safe_load` never runs code from a file, on any torch; :func:`safe_loading` makes the rest of
the process load in the same way.
"""

from __future__ import annotations

import argparse
import codecs
import importlib.util
import os
import pickle
import struct
import threading
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._weights_only_unpickler
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint as mmengine_checkpoint

from mmkd_plugin.beside import reach_imports, reach_modules, read_from
from mmkd_plugin.libraries import not_installed
from mmkd_plugin.words import first_line

__all__ = [
    'CAN_ALLOW_LIST',
    'UNPICKLING_ERRORS',
    'prepare',
    'safe_globals',
    'safe_load',
    'safe_loading',
    'shipped_config',
]

CAN_ALLOW_LIST = hasattr(torch.serialization, 'add_safe_globals')
"""Whether this torch (2.4 and later) can be told which classes are safe to load."""

_FORCE_SAFE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
_FORCE_UNSAFE = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'

UNPICKLING_ERRORS = (
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
    zipfile.BadZipFile,
    ArithmeticError,
    MemoryError,
    RecursionError,
)
"""Errors that ``torch.load`` raises, besides its own, when a damaged file misleads it."""


def prepare() -> None:
    """Makes the installed stack behave as the plugin expects.

    Call it before ``Config.fromfile``. It imports neither mmseg nor mmdet, and a second call
    changes nothing.
    """
    _correct_package_names()
    Config._get_cfg_path = staticmethod(_base_path)
    Config.fromfile = staticmethod(_from_file)
    MODULE2PACKAGE['mmkd'] = __package__  # for `mmengine.hub.get_config`
    if CAN_ALLOW_LIST:
        torch.serialization.add_safe_globals(safe_globals())


def _correct_package_names() -> None:
    """Lets ``module::config`` bases of every installed OpenMMLab library resolve.

    mmengine looks the module up in a table of distribution names, and says "mmsegmentation is not
    installed" when another distribution provides ``mmseg``. With the module's own name in that
    table it finds the module itself.
    """
    for module, package in MODULE2PACKAGE.items():
        if package != module and not _is_distribution(package) and _is_module(module):
            MODULE2PACKAGE[module] = module


_RECIPES = 'mmkd::'
_stock_base_path = Config._get_cfg_path
_stock_from_file = Config.fromfile
# OpenMMLab's mmengine reloads pkg_resources while it looks for the library of a base. A process
# that is forked meanwhile would wait for ever, so a fork waits.
_one_at_a_time = threading.RLock()
os.register_at_fork(
    before=_one_at_a_time.acquire,
    after_in_parent=_one_at_a_time.release,
    after_in_child=_one_at_a_time.release,
)


@wraps(_stock_from_file)
def _from_file(filename: str | Path, *args: Any, **kwargs: Any) -> Config:
    """Stands in for ``Config.fromfile``: it takes the name of a recipe of this package, too.

    What a config imports may also lie beside it, or in the folder one is in. Several threads may
    call it.
    """
    if str(filename).startswith(_RECIPES):
        filename = shipped_config(str(filename))
    with _one_at_a_time:
        cfg = None
        try:
            cfg = _stock_from_file(filename, *args, **kwargs)
        except ImportError as error:
            if not reach_modules(error, filename):
                raise
        if cfg is None:  # behind the error, which another one would name as its origin
            cfg = _stock_from_file(filename, *args, **kwargs)
    read_from(filename)
    if Config._is_lazy_import(str(filename)):
        reach_imports(filename)
    return cfg


def _base_path(path: str, filename: str) -> tuple[str, str | None]:
    """Stands in for mmengine's look-up of a base: it knows the recipes of this package, too.

    mmengine takes the word before ``::`` as the scope in which the parts of a base are built. The
    recipes name a scope themselves, that of mmseg or of mmdet, so they get none here.
    """
    if path.startswith(_RECIPES):
        return str(shipped_config(path)), None
    return _stock_base_path(path, filename)


def _is_distribution(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _is_module(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


_torch_load = torch.load


def safe_load(file: Any, map_location: Any = None, **_: Any) -> Any:
    """Loads a file of ``torch.save`` without running any code that it may hold.

    Args:
        file (str | Path | BinaryIO): The file.
        map_location (Any): As for ``torch.load``. Defaults to None.
        **_ (Any): Other arguments of ``torch.load``; they are ignored.

    Returns:
        Any: The content: tensors, containers, and objects of the types in :func:`safe_globals`.

    Raises:
        pickle.UnpicklingError: If the file asks for any other object, or its pickle is damaged.
        RuntimeError: If torch cannot read the file.
        OSError: If there is no such file, or it cannot be read.
    """
    how: dict[str, Any] = dict(pickle_module=_RestrictedPickle)
    if CAN_ALLOW_LIST:
        torch.serialization.add_safe_globals(safe_globals())
        how = dict(weights_only=True)
    try:
        with _bounded():
            return _torch_load(file, map_location=map_location, **how)
    except UNPICKLING_ERRORS as error:
        raise pickle.UnpicklingError(first_line(error)) from error


@contextmanager
def safe_loading() -> Iterator[None]:
    """Loads everything in this process as :func:`safe_load` does, inside the ``with`` block.

    Without it, mmengine unpickles whatever a file holds where torch lets it, and the fork's loader
    falls back on that for every file that it could not load safely.
    """
    prepare()
    fork = (mmengine_checkpoint, '_safe_torch_load')
    owner, name = fork if CAN_ALLOW_LIST else (torch, 'load')
    original = getattr(owner, name, None)  # upstream has none
    before = {key: os.environ.pop(key, None) for key in (_FORCE_SAFE, _FORCE_UNSAFE)}
    if original is not None:
        setattr(owner, name, safe_load)
    if CAN_ALLOW_LIST:
        os.environ[_FORCE_SAFE] = '1'
    try:
        with _bounded():
            yield
    finally:
        os.environ.pop(_FORCE_SAFE, None)
        os.environ.update({key: value for key, value in before.items() if value is not None})
        if original is not None:
            setattr(owner, name, original)


@contextmanager
def _bounded() -> Iterator[None]:
    """Limits what a file can make by some names that torch's loader allows.

    ``codecs.encode`` doubles what it is given with the codec ``'hex'``, any number of times; a
    ``bytearray`` or an array of a given length takes as much memory as the file asks for.
    """
    if not CAN_ALLOW_LIST:  # `_RestrictedPickle` has the same limits
        yield
        return
    names = torch._weights_only_unpickler._get_allowed_globals()
    before = {name: names.get(name) for name in _BOUNDED}
    names.update(_BOUNDED)
    try:
        yield
    finally:
        for name, item in before.items():
            if item is None:
                names.pop(name, None)
            else:
                names[name] = item


def _encode(text: Any, codec: Any = None) -> bytes:
    if codec != 'latin1':
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL codecs.encode with {codec!r:.40}')
    return codecs.encode(text, codec)


def _bytearray(*args: Any) -> bytearray:
    if not all(isinstance(arg, (bytes, str, bytearray, list)) for arg in args):
        raise pickle.UnpicklingError('Unsupported global: GLOBAL builtins.bytearray of a number')
    return bytearray(*args)


def _ndarray(*_: Any) -> Any:
    """Stands in for the class as an argument of ``_reconstruct``, the way arrays are pickled."""
    raise pickle.UnpicklingError('Unsupported global: GLOBAL numpy.ndarray called by its name')


_BOUNDED: dict[str, Any] = {
    '_codecs.encode': _encode,
    'builtins.bytearray': _bytearray,
    'numpy.ndarray': _ndarray,
}


class _RestrictedPickle:
    """A pickle module for ``torch.load``, where torch has no allow-list."""

    class Unpickler(pickle.Unpickler):
        """Finds only safe classes and functions by their names."""

        def find_class(self, module: str, name: str) -> Any:
            module, name = NAME_MAPPING.get(
                (module, name), (IMPORT_MAPPING.get(module, module), name)
            )
            full = f'{module}.{name}'
            found = _BOUNDED.get(full) or _names_allowed().get(full)
            if found is None:
                raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {module}.{name}')
            return found

    @classmethod
    def load(cls, file: Any, **kwargs: Any) -> Any:
        return cls.Unpickler(file, **kwargs).load()


@lru_cache(maxsize=1)
def _names_allowed() -> dict[str, Any]:
    own = {f'{item.__module__}.{item.__qualname__}': item for item in safe_globals()}
    return {**torch._weights_only_unpickler._get_allowed_globals(), **own}


@lru_cache(maxsize=1)
def _safe_globals() -> tuple[Callable[..., Any], ...]:
    try:
        from numpy._core import multiarray
    except ImportError:  # numpy 1
        from numpy.core import multiarray

    # numpy 2 renamed `numpy.core` to `numpy._core`: a file may come from either.
    def empty(*_: Any) -> np.ndarray:  # its content comes afterwards
        return multiarray._reconstruct(np.ndarray, (0,), b'b')

    renamed = [
        _published_as(module, function, name)
        for module in ('numpy.core.multiarray', 'numpy._core.multiarray')
        for function, name in ((empty, '_reconstruct'), (multiarray.scalar, 'scalar'))
    ]
    dtypes = {type(np.dtype(code)) for code in '?bhilqBHILQefdgFDGSUVMm'}
    return (
        HistoryBuffer,
        slice,
        set,
        bytearray,
        complex,  # as the next one not allowed by torch 2.1 itself
        Counter,  # milestones of MultiStepLR
        codecs.encode,  # how bytes are pickled
        argparse.Namespace,  # research code saves its arguments beside the weights
        np.ndarray,
        np.dtype,
        *sorted(dtypes - {np.dtype}, key=lambda cls: cls.__name__),
        *renamed,
        _published_as('builtins', _getattr, 'getattr'),
    )


def safe_globals() -> list[Callable[..., Any]]:
    """Lists the classes and functions, besides torch's own, that are safe to load.

    mmengine's training checkpoints consist of them: the message hub's history buffers, and numpy's
    arrays, scalars and dtypes under the names of numpy 1 and of numpy 2.

    Returns:
        list[Callable]: For ``torch.serialization.add_safe_globals``.
    """
    return list(_safe_globals())


def _getattr(owner: Any, name: str) -> Any:
    """Stands in for ``getattr`` while loading.

    A pickled history buffer refers to its own methods by ``getattr(HistoryBuffer, 'mean')``. The
    real ``getattr`` would hand a file any attribute of anything on the list.
    """
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(
            f'Trying to load unsupported GLOBAL builtins.getattr of {owner!r}, {name!r}'
        )
    return getattr(owner, name)


def _published_as(
    module: str, function: Callable[..., Any], name: str | None = None
) -> Callable[..., Any]:
    """Wraps ``function`` under the name by which pickles refer to it.

    torch takes ``(function, name)`` pairs for this, but only since 2.6.
    """

    def published(*args: Any) -> Any:
        return function(*args)

    published.__module__ = module
    published.__name__ = published.__qualname__ = name or function.__name__
    return published


def shipped_config(name: str) -> Path:
    """Finds the file behind ``'mmseg::pspnet/....py'``, or ``'mmkd::cwd/....py'``.

    mmengine's own look-up installs a missing package; this one raises an error.

    Args:
        name (str): An import name, ``::``, and a path below the library's configs. ``mmkd`` is this
            package, installed or in a clone.

    Returns:
        Path: The file; it need not exist.

    Raises:
        FileNotFoundError: If no such package is installed, or it is a module without configs.
    """
    package, _, path = name.partition('::')
    if name.startswith(_RECIPES):
        package = __package__
    if problem := not_installed(package):
        raise FileNotFoundError(f'{name}: {problem}')
    folders = importlib.util.find_spec(package).submodule_search_locations
    if not folders:
        raise FileNotFoundError(f'{name}: `{package}` is a single module and has no configs')
    root = Path(next(iter(folders)))
    shipped, in_clone = root / '.mim' / 'configs', root.parent / 'configs'
    return (in_clone if in_clone.is_dir() and not shipped.is_dir() else shipped) / path
