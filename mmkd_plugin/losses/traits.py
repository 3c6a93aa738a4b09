"""Traits: what a loss declares about itself, read in this one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

#: The share of ``loss_weight='auto'``: docs/results.md has trials of several.
AUTO_SHARE = 2.5


def always_teaches(
    channels: int, size: tuple[int, ...] | None = None, images: int | None = None
) -> str | None:
    """The answer of a loss that can teach whatever it is given."""
    return None


class LossTraits(NamedTuple):
    """What a loss asks for; an attribute or a property of the same name declares it.

    Args:
        needs (tuple[str, ...]): Keyword arguments of ``forward`` beside the maps, each one of
            those in :mod:`mmkd_plugin.terms.needs`. Defaults to none.
        compares (str): ``'maps'``, ``'gradients'`` of the task loss with respect to them, or
            ``'explanations'`` of class scores by them. Defaults to ``'maps'``.
        needs_same_channels (bool): Whether student and teacher must have equally many channels;
            if so, a 1×1 convolution is added where they differ. Defaults to True.
        needs_same_size (bool): Whether their heights and widths must be equal; if so, the
            student's maps are resized where they differ. Defaults to True.
        needs_raw_maps (bool): Whether the maps are compared as the models give them: nothing is
            added or resized where they differ. Defaults to False.
        compares_probabilities (bool): Whether it compares the probabilities of classes and nothing
            else, so that the largest scores are enough. Defaults to False.
        tau (float): The temperature at which it compares probabilities. Defaults to 1.
        teaches_nothing (Callable): For maps of that many ``channels``, of that ``size`` and of that
            many ``images``, the reason why the loss is always 0, or None if it is not. Size and
            images are None where they are not known yet. Defaults to never.
        auto_share (float): The share of the task loss's gradient that ``loss_weight='auto'`` means.
            Defaults to ``AUTO_SHARE``.
    """

    needs: tuple[str, ...] = ()
    compares: str = 'maps'
    needs_same_channels: bool = True
    needs_same_size: bool = True
    needs_raw_maps: bool = False
    compares_probabilities: bool = False
    tau: float = 1.0
    teaches_nothing: Callable[..., str | None] = always_teaches
    auto_share: float = AUTO_SHARE

    @classmethod
    def of(cls, loss: nn.Module) -> LossTraits:
        """Those of a loss.

        Raises:
            ValueError: If ``needs`` is one name and no tuple of names.

        Examples:
            >>> from mmkd_plugin.losses import AttentionLoss
            >>> LossTraits.of(AttentionLoss()).needs_same_channels
            False
        """
        if isinstance(getattr(loss, 'needs', ()), str):
            raise ValueError(
                f'{type(loss).__name__}.needs must be a tuple of names, such as ({loss.needs!r},)'
            )
        return cls(
            **{name: getattr(loss, name, default) for name, default in cls._field_defaults.items()}
        )
