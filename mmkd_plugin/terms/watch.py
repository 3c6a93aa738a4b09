"""Watch: looks at a term as it trains, and says early if it teaches nothing, or too much."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmkd_plugin.losses.traits import LossTraits
from mmkd_plugin.terms.gradient_sizes import Sizes

#: In how many iterations the loss of a term has to be 0 for a warning.
PATIENCE = 10

#: Below it a loss is 0 but for rounding.
ROUNDING = 1e-30

#: Iterations of a term in which its gradient is compared with that of the task loss: the first
#: ones say whether it teaches, and each n-th is noted for the log.
LOOKS, EVERY = (0, 10, 20, 30, 40), 50

#: Sizes of a term's gradient, over that of the task loss, that are too small and too large.
TOO_SMALL, TOO_LARGE = 1e-4, 100

#: The size that is advised.
ADVISED = 0.3


class Watch:
    """Looks at what a term compares, above all in the first iterations in which it is on.

    Later its gradient is measured in each fiftieth iteration, and the others cost nothing.

    Args:
        here (str): What messages call the term.
        loss (str): What they call the loss.
        traits (LossTraits): What the loss declares.
        tap (str): What they call the student's tap. Defaults to ``'its tap'``.
    """

    def __init__(self, here: str, loss: str, traits: LossTraits, tap: str = 'its tap') -> None:
        self.here = here
        self.loss = loss
        self.traits = traits
        self.tap = tap
        self.seen = 0
        self.zeros = 0
        self.looks: list[tuple[float, float | None, float]] = []
        self.blind = False
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
        self.seen += 1
        if self.seen > PATIENCE:
            return
        self.zeros += bool(loss.detach().abs() < ROUNDING)
        if self.zeros == PATIENCE:
            self._warn(
                f'{self.here} teaches nothing so far: {self.loss} was exactly 0 in the first '
                f'{PATIENCE} iterations in which the term was on. Look at what its taps give, and '
                'at the options of the loss'
            )

    def due(self) -> bool:
        """Whether the gradient of the term is looked at in this iteration."""
        return (self.seen in LOOKS or self.seen % EVERY == 0) and not self.blind

    def gradient(self, sizes: Sizes) -> None:
        """Looks at the gradient of the term; after the first looks, warns if it is no use.

        Args:
            sizes (Sizes): The sizes of the gradients at the student's taps.
        """
        if self.seen not in LOOKS:
            return
        task = None if sizes.task is None else sizes.task.norm().item()
        self.looks.append((sizes.term.norm().item(), task, sizes.connector.item()))
        if self.seen == LOOKS[-1]:
            self._judge()

    def _judge(self) -> None:
        alone = all(connector > 0 for _, _, connector in self.looks)
        rest = ', and only its connector learns' if alone else ''
        if not any(term for term, _, _ in self.looks):
            self._warn(
                f'{self.here} teaches nothing so far: {self.loss} gave {self.tap} of the student '
                f'no gradient in the first {LOOKS[-1]} iterations in which the term was on{rest}. '
                'Look at what its taps give, and at the options of the loss'
            )
            return
        shares = [term / task for term, task, _ in self.looks if task]
        share = statistics.median(shares) if shares else ADVISED
        if share < TOO_SMALL:
            self._warn(
                f'{self.here} teaches next to nothing: the gradient of {self.loss} at {self.tap} '
                f"of the student is {share:.1e} of the task loss's there{rest}. Multiply its "
                f"loss_weight by about {ADVISED / share:.1g}, or set loss_weight='auto'"
            )
        elif share > TOO_LARGE:
            self._warn(
                f'{self.here} drowns the task loss: the gradient of {self.loss} at {self.tap} of '
                f"the student is {share:.3g} times the task loss's there. Divide its loss_weight "
                f"by about {share / ADVISED:.1g}, or set loss_weight='auto'"
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
