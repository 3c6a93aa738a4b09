"""Health of a step: whether there is a loss among many that cannot be trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

#: From here on the square of a gradient of the same size is infinite in float32.
TOO_LARGE = 1e18


def first_unusable(losses: Mapping[str, Any]) -> str | None:
    """The first entry that is NaN, infinite, or so large that its gradient is soon infinite.

    The losses are fetched from the device together, once.

    Args:
        losses (Mapping[str, Any]): As a model gives them: tensors or lists of tensors. Entries
            without ``loss`` in their key are not looked at, as they are not trained on.

    Examples:
        >>> first_unusable(dict(loss_cls=torch.tensor(1.0), acc=torch.tensor(float('nan'))))
        >>> first_unusable(dict(loss_cls=torch.ones(2), loss_box=[torch.tensor(float('nan'))]))
        'loss_box'
    """
    keys, values = [], []
    for key, value in losses.items():
        if 'loss' in key:
            for one in [value] if isinstance(value, Tensor) else value:
                keys.append(key)
                values.append(one.detach().float().mean() if one.dim() else one.detach().float())
    if not values or bool((torch.stack(values).abs() < TOO_LARGE).all()):
        return None
    return next(key for key, one in zip(keys, values) if not one.abs() < TOO_LARGE)


def as_number(value: Any) -> float:
    """A loss as a number: the sum of a list, the mean of a tensor, as mmengine adds them up."""
    if isinstance(value, Tensor):
        return value.detach().float().mean().item()
    return sum(map(as_number, value))
