"""The state of a run in a checkpoint: whether each part of it is of the kind that is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer
from torch import Tensor

from mmkd_plugin.running.accumulating import KEPT as GRADIENTS
from mmkd_plugin.running.augmenting import KEPT as AUGMENTS
from mmkd_plugin.running.identity import IDENTITY
from mmkd_plugin.running.kinds import told
from mmkd_plugin.running.randomness import DONE

#: Seeds that numpy takes.
SEEDS = 2**32

MISSING = object()


def wrong_parts(checkpoint: Mapping[str, Any]) -> list[str]:
    """What of the state of a run cannot be loaded.

    Args:
        checkpoint (Mapping[str, Any]): What a file holds, with ``meta`` and ``message_hub``.

    Returns:
        list[str]: A text on each part.

    Examples:
        >>> hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
        >>> wrong_parts(dict(meta=dict(epoch=0, iter=-1), message_hub=hub))
        ['`meta.iter` is -1']
    """
    wrong = []
    for path, (fits, needed) in _KINDS.items():
        value: Any = checkpoint
        for key in path.split('.'):
            value = value.get(key, MISSING) if isinstance(value, Mapping) else MISSING
        if value is MISSING and needed:
            wrong.append(f'`{path}` is missing')
        elif value is not MISSING and not fits(value):
            wrong.append(f'`{path}` is {told(value)}')
    if isinstance(checkpoint['meta'], Mapping) and 'config' in checkpoint['meta']:
        wrong.append('`meta.config` is code')  # mmengine would run it
    return [*wrong, *_wrong_optimizer(checkpoint.get('optimizer'))]


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: _is_mapping(value) and all(map(check, value.values()))


def _is_list(check: Callable[[Any], bool], count: int | None = None) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, (list, tuple))
        and all(map(check, value))
        and (count is None or len(value) == count)
    )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _is_history(value: Any) -> bool:
    """Whether it is a history of one value, or something that mmengine leaves out."""
    if not isinstance(value, HistoryBuffer):
        return True
    arrays = [getattr(value, key, None) for key in ('_log_history', '_count_history')]
    plain = all(isinstance(x, np.ndarray) and x.ndim == 1 and x.dtype.kind in 'fiu' for x in arrays)
    return plain and len(arrays[0]) == len(arrays[1])


def _are_schedulers(value: Any) -> bool:
    lists = value.values() if isinstance(value, Mapping) else [value]
    return all(map(_is_list(_is_mapping), lists))


#: By the path of a part: whether a value is of its kind, and whether it has to be there.
_KINDS: dict[str, tuple[Callable[[Any], bool], bool]] = {
    'meta': (_is_mapping, True),
    'meta.epoch': (_is_whole, True),
    'meta.iter': (_is_whole, True),
    'meta.seed': (lambda x: x is None or (_is_whole(x) and x < SEEDS), False),
    f'meta.{DONE}': (_is_list(_is_whole, 2), False),
    f'meta.{AUGMENTS}': (_of(_is_mapping), False),
    f'meta.{IDENTITY}': (_is_mapping, False),
    f'meta.{IDENTITY}.config': (_is_mapping, False),
    f'meta.{IDENTITY}.trained': (_is_list(lambda x: isinstance(x, str)), False),
    f'meta.{IDENTITY}.processes': (_is_whole, False),
    'message_hub': (_is_mapping, True),
    'message_hub.log_scalars': (_of(_is_history), True),
    'message_hub.runtime_info': (_is_mapping, True),
    'message_hub.resumed_keys': (_of(lambda x: type(x) is bool), True),
    'state_dict': (_of(_is_tensor), False),
    'optimizer': (lambda x: isinstance(x, Mapping), False),
    'param_schedulers': (_are_schedulers, False),
    'ema_state_dict': (_of(_is_tensor), False),
    GRADIENTS: (_of(_is_tensor), False),
}


def _wrong_optimizer(optimizer: Any, here: str = 'optimizer') -> Iterator[str]:
    """What is wrong with the state of an optimizer, or of several by their names."""
    if not isinstance(optimizer, Mapping):
        return
    known = 'state' in optimizer or 'param_groups' in optimizer
    if not known and any(isinstance(one, Mapping) for one in optimizer.values()):
        for name, one in optimizer.items():
            yield from _wrong_optimizer(one, f'{here}.{name}')
        return
    groups, state = optimizer.get('param_groups'), optimizer.get('state')
    if not _is_list(_is_group)(groups):
        yield f'`{here}.param_groups` is {told(groups)}'
    if not isinstance(state, Mapping) or not all(map(_is_mapping, state.values())):
        yield f'`{here}.state` is {told(state)}'


def _is_group(value: Any) -> bool:
    return _is_mapping(value) and _is_list(_is_whole)(value.get('params'))
