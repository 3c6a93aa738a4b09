"""What runs import late, for processes that are forked: it is imported once, before them."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib import import_module

from mmkd_plugin.registry import MODELS

PARTS = ('datasets', 'datasets.transforms', 'engine', 'evaluation', 'models', 'visualization')


@cache
def import_all() -> None:
    """Imports the parts of both libraries, and what optimizers and pages need."""
    for name in ('torch._dynamo', 'matplotlib.pyplot'):
        with suppress(ImportError):
            import_module(name)
    for library in ('mmseg', 'mmdet'):
        for part in PARTS:
            with suppress(ImportError):  # mmdet without compiled ops
                import_module(f'{library}.{part}')
    MODELS.get('mmkd_plugin.Distiller')
