"""Automatic weights: a term's share of the gradient at the student's tap, in place of a number."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.numerics.checks import positive_number
from mmkd_plugin.losses.traits import AUTO_SHARE
from mmkd_plugin.terms.gradient_sizes import Sizes
from mmkd_plugin.words import short

#: Iterations of a term in which its weight is measured: each of the first ones, then each n-th.
FIRST, EVERY = 10, 50

#: How much of the averages of the sizes stays at a new measurement.
KEEP = 0.9

LARGEST_SHARE = 1000.0


def auto_share(value: Any, here: str, default: float = AUTO_SHARE) -> float | None:
    """The share that a ``loss_weight`` of a config asks for.

    Args:
        value (Any): The value: ``'auto'``, ``dict(auto=2.5)``, or the weight itself.
        here (str): What messages call its place in the config.
        default (float): The share of ``'auto'``. Defaults to ``AUTO_SHARE``.

    Returns:
        float | None: The share, None if the value is a weight.

    Raises:
        ValueError: If it is neither.

    Examples:
        >>> [auto_share(value, 'loss_weight') for value in ('auto', dict(auto=0.1), 3.0)]
        [2.5, 0.1, None]
    """
    if value == 'auto':
        return default
    if not isinstance(value, (str, dict)):
        return None
    if isinstance(value, str) or list(value) != ['auto']:
        raise ValueError(
            f"{here} must be a number, 'auto' or dict(auto={default:g}), got {short(value)}"
        )
    share = value['auto']
    if not isinstance(share, Real) or isinstance(share, bool) or not 0 < share <= LARGEST_SHARE:
        raise ValueError(
            f'{here}.auto must be the share of the task loss, a number above 0 and at most '
            f'{LARGEST_SHARE:g}, got {short(share)}'
        )
    return float(share)


class AutoWeight(nn.Module):
    """The weight with which a term's gradient has a set share of the task loss's, at its tap.

    The weight of a map is ``share * |dL_task/dx| / |dL_term/dx|``, with the averages of both sizes
    over the measurements. It is there from the first iteration of the term on, and follows slowly.
    All state is saved and resumed.

    Args:
        share (float): Size of the term's gradient, over that of the task loss. Defaults to 2.5.

    Attributes:
        weight (Tensor): The weights, ``(n,)``; 0 where there was nothing to measure so far.
        steps (int): Number of iterations in which the term was on.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.terms.gradient_sizes import Sizes
        >>> auto = AutoWeight(share=0.5)
        >>> auto.for_maps(1)
        >>> sizes = torch.tensor([2.0]), torch.tensor([8.0])  # of the term, of the task
        >>> _ = auto.update(Sizes(*sizes, [True], torch.zeros(())))
        >>> auto.current().item()
        2.0
    """

    def __init__(self, share: float = AUTO_SHARE) -> None:
        super().__init__()
        self.share = positive_number('share', share)
        self.steps = 0
        self.ready = False

    def for_maps(self, count: int) -> None:
        """Forgets all measurements, and finds one weight for each of some maps from now on."""
        for name in ('weight', 'task', 'term', 'measured'):
            self.register_buffer(name, torch.zeros(count))
        self.ready = True

    def due(self) -> bool:
        """Whether the weight is measured in this iteration."""
        return self.steps < FIRST or self.steps % EVERY == 0

    def current(self, measuring: bool = False) -> Tensor | tuple[Tensor, ...]:
        """The ``loss_weight`` of a loss: a scalar, or one for each map.

        Args:
            measuring (bool): Whether it is for a measurement, which takes 1 where nothing is known.
                Defaults to False.
        """
        weight = self.weight
        if measuring:
            weight = torch.where(weight > 0, weight, torch.ones_like(weight))
        return weight[0] if len(weight) == 1 else weight.unbind()

    def update(self, sizes: Sizes) -> Sizes:
        """Takes a measurement, made with :meth:`current` of ``measuring``.

        Args:
            sizes (Sizes): The sizes of the gradients. Maps with a gradient of 0, or one that is not
                finite, keep what they have; so do all while the task loss is off.

        Returns:
            Sizes: The same, with the weight that was found.
        """
        unit = sizes.term / torch.where(self.weight > 0, self.weight, torch.ones_like(self.weight))
        if sizes.task is not None:
            self._average(*map(self._together, (unit, sizes.task)))
        return sizes._replace(term=unit * self.weight)

    def _together(self, sizes: Tensor) -> Tensor:
        return sizes.norm()[None] if len(self.weight) == 1 else sizes

    def _average(self, term: Tensor, task: Tensor) -> None:
        good = torch.isfinite(term) & torch.isfinite(task) & (term > 0) & (task > 0)
        kept = (self.measured / (self.measured + 1)).clamp(max=KEEP)
        self.task = torch.where(good, kept * self.task + (1 - kept) * task, self.task)
        self.term = torch.where(good, kept * self.term + (1 - kept) * term, self.term)
        self.measured = self.measured + good
        found = self.share * self.task / self.term
        self.weight = torch.where(self.measured > 0, found, torch.zeros_like(found))

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        self.steps = int(state)

    def extra_repr(self) -> str:
        return f'share={self.share:g}'
