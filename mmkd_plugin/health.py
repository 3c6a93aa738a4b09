"""Health of a step: whether there is a loss among many that cannot be trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: From here on the square of a gradient of the same size is infinite in float32.
TOO_LARGE = 1e18


class Finding(NamedTuple):
    """A part of a step, in the order in which it was computed.

    Args:
        name (str): What it is.
        text (str): Its size and its range, or its value.
        finite (bool): Whether all of it is finite.
    """

    name: str
    text: str
    finite: bool

    def __str__(self) -> str:
        return f'{"  " if self.finite else "! "}{self.name}: {self.text}'


class NotFiniteError(FloatingPointError):
    """A loss that cannot be trained on.

    Args:
        text (str): The message.
        culprit (str): Key of the loss.
        losses (Mapping[str, Any]): All losses of the step.
        findings (Sequence[Finding]): What was compared in it, and what came out.
    """

    def __init__(
        self,
        text: str,
        culprit: str = '',
        losses: Mapping[str, Any] | None = None,
        findings: Sequence[Finding] = (),
    ) -> None:
        super().__init__(text)
        self.culprit, self.losses, self.findings = culprit, dict(losses or {}), list(findings)

    def with_text(self, text: str) -> NotFiniteError:
        """The same with another message."""
        return type(self)(text, self.culprit, self.losses, self.findings)


class BrokenWeightsError(FloatingPointError):
    """Weights that are not finite, which are not worth a checkpoint."""


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
