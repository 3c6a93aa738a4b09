"""The losses of MMRazor 1.0.0, run from the files that pip installed."""

from __future__ import annotations

import importlib.util
import sys
import types
from importlib import metadata
from pathlib import Path

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
    file, _, kind = name.partition('.')
    path = folder() / f'{file}.py'
    spec = importlib.util.spec_from_file_location(f'_mmrazor_{file}', path)
    module = importlib.util.module_from_spec(spec)
    stubs = {'mmrazor': types.ModuleType('mmrazor')}
    stubs['mmrazor.registry'] = types.ModuleType('mmrazor.registry')
    stubs['mmrazor.registry'].MODELS = Registry('model')
    before = {stub: sys.modules.get(stub) for stub in stubs}
    sys.modules.update(stubs)
    try:
        spec.loader.exec_module(module)
    finally:
        for stub, old in before.items():
            if old is None:
                del sys.modules[stub]
            else:
                sys.modules[stub] = old
    return getattr(module, kind)(**options)
