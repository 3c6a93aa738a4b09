"""Libraries of OpenMMLab that are missing or cannot be imported, and what to type then."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from traceback import walk_tb
from typing import TYPE_CHECKING

from mmkd_plugin.words import did_you_mean, first_line

if TYPE_CHECKING:  # `mmkd` runs this where there is no mmengine
    from mmengine.config import Config

#: What to install, by the names to import: OpenMMLab's own packages, and those of the fork.
PACKAGES = {
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'onedl-mmcv'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
}

_HELP = "docs/troubleshooting.md, 'Installing and versions'"


def not_installed(name: str) -> str:
    """What is said of a library that is not there; empty if it is.

    Args:
        name (str): The name to import it by, such as ``'mmseg'``.

    Examples:
        >>> not_installed('mmengine')
        ''
        >>> not_installed('mmsegm')
        'no library `mmsegm` is installed; did you mean `mmseg`?'
    """
    if _is_installed(name):
        return ''
    if name in PACKAGES:
        return f'{name} is not installed: pip install {PACKAGES[name][_fork_is_used()]}'
    return f'no library `{name}` is installed{did_you_mean(name, PACKAGES)}'


def installed() -> list[str]:
    """The libraries of OpenMMLab that are there and have models."""
    return [name for name in PACKAGES if name != 'mmcv' and _is_installed(name)]


def cannot_import(name: str) -> str:
    """What keeps a library from being imported; empty if nothing does. This imports it.

    Args:
        name (str): The name to import it by.
    """
    if problem := not_installed(name):
        return problem
    try:
        import_module(name)
    except Exception as error:  # whatever a library finds wrong with the others
        return import_problem(error) or f'{name} cannot be imported: {import_reason(error)}'
    return ''


def scope_problem(cfg: Config) -> str:
    """What keeps the ``default_scope`` of a config from being used; empty if nothing does.

    Args:
        cfg (Config): A config. With ``custom_imports`` its scope may be its own.
    """
    scope = cfg.get('default_scope')
    if not isinstance(scope, str) or cfg.get('custom_imports'):
        return ''
    needs_mmcv = scope != 'mmengine'  # the libraries import it late
    problem = (needs_mmcv and not_installed('mmcv')) or cannot_import(scope)
    return problem and f"default_scope='{scope}': {problem}"


def import_problem(error: BaseException) -> str:
    """What is said of an error that came while a library was imported; empty for any other.

    mmengine imports a library when it first needs one of its parts, so such an error comes in the
    middle of something else.

    Args:
        error (BaseException): The error, or one that was raised from it.
    """
    error = _first(error)
    for frame, _ in walk_tb(error.__traceback__):
        library = frame.f_globals.get('__name__', '').partition('.')[0]
        if frame.f_code.co_name == '<module>' and library not in ('__main__', __package__):
            return f'{library} cannot be imported: {import_reason(error)}'
    return ''


def import_reason(error: BaseException) -> str:
    """Why an import failed, and what to install.

    Args:
        error (BaseException): The error, or one that was raised from it.

    Examples:
        >>> import_reason(ModuleNotFoundError("No module named 'einops'", name='einops'))
        'it needs `einops`, which is not installed'
    """
    outer, error = error, _first(error)
    text = first_line(error)
    if getattr(error, 'name', None) == 'mmcv._ext':
        return f'it needs the compiled ops of mmcv, and this mmcv has none ({_HELP})'
    if isinstance(error, ModuleNotFoundError) and error.name in PACKAGES:
        return not_installed(error.name)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f'it needs `{error.name}`, which is not installed{_of_the_user(error, outer)}'
    if isinstance(error, ImportError) and re.search(r'mmcv\W_ext', text):
        return (
            f'the compiled ops of mmcv were built for another torch or CUDA than these ({text}); '
            f'install an mmcv that was built for them ({_HELP})'
        )
    if 'is used but incompatible' in text:
        return f'{text.removeprefix("AssertionError: ")} Versions that go together: {_HELP}'
    return text


def _of_the_user(missing: ModuleNotFoundError, error: BaseException) -> str:
    """Where a module may lie that the `custom_imports` of a config name; empty for any other."""
    told = str(error).partition(', the current sys.path')[0]  # of mmengine
    names = re.findall(r"'([\w.]+)'", told) if 'custom modules from' in told else []
    if missing.name not in (name.partition('.')[0] for name in names):
        return ''
    return (
        ', and lies neither beside the config nor in the folder you are in: type PYTHONPATH=FOLDER '
        f'in front of the command, with the folder that {missing.name} lies in'
    )


def missing_module(error: BaseException) -> str:
    """The module that an import did not find; empty for any other error.

    Args:
        error (BaseException): The error, or one that was raised from it.
    """
    error = _first(error)
    return (error.name or '') if isinstance(error, ModuleNotFoundError) else ''


def _first(error: BaseException) -> BaseException:
    """The error that others were raised from, or while it was handled."""
    met = [error]
    while (before := met[-1].__cause__ or met[-1].__context__) not in (None, *met):
        met.append(before)  # one that was raised from itself ends the way
    return met[-1]


def _is_installed(name: str) -> bool:
    spec = find_spec(name) if name.isidentifier() else None
    return spec is not None and spec.origin is not None  # None: a folder that was left behind


def _fork_is_used() -> bool:
    try:
        return bool(version('onedl-mmengine'))
    except PackageNotFoundError:
        return False
