"""Prefixes: finds a model among the keys of a file that holds more, or other names for it."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: Modules that wrap others, anywhere in a name: those of torch.compile, FSDP and checkpointing.
_WRAPPERS = re.compile(r'\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.')


class Part(NamedTuple):
    """The part of a file behind one prefix.

    Args:
        prefix (str): The text before the names of the model.
        matched (int): Tensors of the model that it holds, in the right shape.
        whole (bool): Whether these are all tensors of the model, and it has no others for the
            model's components.
    """

    prefix: str
    matched: int
    whole: bool


def is_counter(key: str) -> bool:
    """Whether a key is the step counter of a batch norm, which some files leave out."""
    return key.endswith('num_batches_tracked')


def parts(expected: Mapping[str, torch.Size], given: Mapping[str, Tensor]) -> list[Part]:
    """Finds the prefixes behind which a file holds tensors of a model.

    Args:
        expected (Mapping[str, torch.Size]): The keys of the model and their shapes.
        given (Mapping[str, Tensor]): The weights in the file.

    Returns:
        list[Part]: The whole ones first, then by the number of tensors that fit.

    Examples:
        >>> weights = {'net.0.weight': torch.ones(2), 'old.0.weight': torch.ones(3)}
        >>> parts({'0.weight': torch.Size([2])}, weights)
        [Part(prefix='net.', matched=1, whole=True)]
    """
    expected = {key: shape for key, shape in expected.items() if not is_counter(key)}
    given = {key: value.shape for key, value in given.items() if not is_counter(key)}
    matched: Counter[str] = Counter()
    for key, shape in given.items():
        for start in (0, *(match.end() for match in re.finditer(r'[._]', key))):
            if expected.get(key[start:]) == shape:
                matched[key[:start]] += 1
    components = {key.partition('.')[0] for key in expected}
    found = []
    for prefix, count in matched.items():
        behind = [key[len(prefix) :] for key in given if key.startswith(prefix)]
        foreign = any(k.partition('.')[0] in components and k not in expected for k in behind)
        found.append(Part(prefix, count, count == len(expected) and not foreign))
    return sorted(found, key=lambda part: (not part.whole, -part.matched))


def behind(state_dict: Mapping[str, Tensor], prefix: str) -> OrderedDict[str, Tensor]:
    """Takes the weights behind a prefix, with the metadata of their modules.

    Args:
        state_dict (Mapping[str, Tensor]): The weights, with ``_metadata`` or without.
        prefix (str): The text before the names.

    Examples:
        >>> behind({'a.weight': 1, 'b.weight': 2}, 'a.')
        OrderedDict([('weight', 1)])
    """
    size = len(prefix)
    taken = OrderedDict((k[size:], v) for k, v in state_dict.items() if k.startswith(prefix))
    metadata: Mapping[str, Any] = getattr(state_dict, '_metadata', None) or {}
    inner = {k[size:]: v for k, v in metadata.items() if f'{k}.'.startswith(prefix)}
    taken._metadata = OrderedDict(inner or metadata)
    return taken


def unwrapped(
    state_dict: OrderedDict[str, Tensor], expected: Mapping[str, Any]
) -> OrderedDict[str, Tensor]:
    """Takes the names of wrappers such as ``_orig_mod`` out of keys, unless the model has them.

    Args:
        state_dict (OrderedDict[str, Tensor]): The weights.
        expected (Mapping): The keys of the model.
    """
    if not any(map(_WRAPPERS.search, state_dict)) or any(map(_WRAPPERS.search, expected)):
        return state_dict
    plain = OrderedDict((_WRAPPERS.sub('', key), value) for key, value in state_dict.items())
    metadata = getattr(state_dict, '_metadata', None) or {}
    plain._metadata = OrderedDict(
        (_WRAPPERS.sub('', f'{key}.')[:-1], value) for key, value in metadata.items()
    )
    return plain
