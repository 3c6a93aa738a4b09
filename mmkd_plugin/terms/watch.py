"""Watch: looks at the first iterations of a term and says if it teaches nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmkd_plugin.losses.traits import LossTraits

#: In how many iterations the loss of a term has to be 0 for a warning.
PATIENCE = 10

#: Below it a loss is 0 but for rounding.
ROUNDING = 1e-30


class Watch:
    """Looks at what a term compares in the first iterations in which it is on.

    Later iterations cost nothing: the loss is fetched from the device in the first ones alone.

    Args:
        here (str): What messages call the term.
        loss (str): What they call the loss.
        traits (LossTraits): What the loss declares.
    """

    def __init__(self, here: str, loss: str, traits: LossTraits) -> None:
        self.here = here
        self.loss = loss
        self.traits = traits
        self.seen = 0
        self.zeros = 0
        self.warned = False

    def channels(self, maps: Sequence[Tensor]) -> None:
        """Refuses, before training, maps of which the number of channels leaves nothing to learn.

        Args:
            maps (Sequence[Tensor]): The student's, ``(N, C, H, W)``, as the loss gets them.

        Raises:
            ValueError: If the loss is 0 for all of them, whatever their size.
        """
        self._refuse(self._reason(maps, with_size=False, images=None))

    def maps(self, maps: Sequence[Tensor]) -> None:
        """Looks at the student's maps in the first iteration.

        Args:
            maps (Sequence[Tensor]): The maps, ``(N, C, H, W)``, as the loss gets them.

        Raises:
            ValueError: If the loss is 0 for all batches of that many images.
        """
        if self.seen or not torch.is_grad_enabled():
            return
        images = maps[0].shape[0]
        self._refuse(self._reason(maps, with_size=False, images=images))
        reason = self._reason(maps, with_size=True, images=images)
        if reason is not None:
            self._warn(f'{self.here}: {self.loss} teaches nothing: {reason}')

    def value(self, loss: Tensor) -> None:
        """Looks at the loss, and warns once if it was 0 in the first iterations.

        Args:
            loss (Tensor): The loss of an iteration, a scalar.
        """
        if self.seen >= PATIENCE or not torch.is_grad_enabled():
            return
        self.seen += 1
        self.zeros += bool(loss.detach().abs() < ROUNDING)
        if self.zeros == PATIENCE:
            self._warn(
                f'{self.here} teaches nothing so far: {self.loss} was exactly 0 in the first '
                f'{PATIENCE} iterations in which the term was on. Look at what its taps give, and '
                'at the options of the loss'
            )

    def _reason(self, maps: Sequence[Tensor], with_size: bool, images: int | None) -> str | None:
        """The reason why the loss is 0 for each of some maps; None if there is one that teaches."""
        reasons = [
            self.traits.teaches_nothing(
                x.shape[1], tuple(x.shape[2:]) if with_size else None, images
            )
            for x in maps
        ]
        return reasons[0] if all(reasons) else None

    def _refuse(self, reason: str | None) -> None:
        if reason is not None:
            raise ValueError(f'{self.here}: {self.loss} teaches nothing: {reason}')

    def _warn(self, text: str) -> None:
        if not self.warned:
            self.warned = True
            print_log(text, logger='current', level=logging.WARNING)
