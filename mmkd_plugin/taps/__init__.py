"""Taps: read tensors at named modules while a model runs.

Public: :class:`Tap`, :class:`Taps` and :class:`TapReader`. The other names are for this package.
"""

from mmkd_plugin.taps.reader import TapError, TapReader
from mmkd_plugin.taps.tap import (
    Maps,
    Tap,
    Taps,
    as_list,
    classes_around,
    describe,
    find_module,
    module_around,
    places_of,
)

__all__ = [
    'Maps',
    'Tap',
    'TapError',
    'TapReader',
    'Taps',
    'as_list',
    'classes_around',
    'describe',
    'find_module',
    'module_around',
    'places_of',
]
