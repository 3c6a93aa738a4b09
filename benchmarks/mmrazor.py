"""The losses of MMRazor 1.0.0, run from the files that pip installed."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from mmengine.registry import Registry
from torch import nn

VERSION = '1.0.0'
INSTALL = f'pip install --no-deps mmrazor=={VERSION}'


class NotInstalled(RuntimeError):
    """MMRazor is not there, or another version; the message says what to do."""


def folder() -> Path:
    """Where the files of its losses are.

    Raises:
        NotInstalled: If they are not.
    """
    try:
        found = metadata.distribution('mmrazor')
    except metadata.PackageNotFoundError:
        raise NotInstalled(f'MMRazor is not installed: {INSTALL}') from None
    if found.version != VERSION:
        raise NotInstalled(f'MMRazor {found.version} is installed, not {VERSION}: {INSTALL}')
    return Path(found.locate_file('mmrazor/models/losses'))


def loss(name: str, **options: float) -> nn.Module:
    """Builds one of its losses.

    The package as a whole does not import with current PyTorch; each of these files needs no more
    of it than a registry, so it gets an empty one while it is run.

    Args:
        name (str): File and class, ``'cwd.ChannelWiseDivergence'``.
        **options: Arguments of the class.

    Raises:
        NotInstalled: If the package is not there.
    """
    return _build(folder(), name, options)


def connector(name: str, **options: int | bool) -> nn.Module:
    """Builds one of its connectors, as :func:`loss` does.

    Args:
        name (str): File and class, ``'fbkd_connector.FBKDStudentConnector'``.
        **options: Arguments of the class.

    Raises:
        NotInstalled: If the package is not there.
    """
    return _build(folder().parent / 'architectures' / 'connectors', name, options)


def _build(where: Path, name: str, options: Mapping[str, Any]) -> nn.Module:
    file, _, kind = name.partition('.')
    package = f'_mmrazor_{where.name}'
    stubs = {one: types.ModuleType(one) for one in ('mmrazor', 'mmrazor.registry', package)}
    stubs['mmrazor.registry'].MODELS = Registry('model')
    stubs[package].__path__ = [str(where)]
    before = {stub: sys.modules.get(stub) for stub in stubs}
    sys.modules.update(stubs)
    try:
        module = importlib.import_module(f'{package}.{file}')
    finally:
        for stub, old in before.items():
            if old is None:
                del sys.modules[stub]
            else:
                sys.modules[stub] = old
        for loaded in [one for one in sys.modules if one.startswith(f'{package}.')]:
            del sys.modules[loaded]
    return getattr(module, kind)(**options)
