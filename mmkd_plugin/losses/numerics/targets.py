"""Logits split by the class of the labels: that class, and all others."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.checks import labels_at


def target_classes(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The class of each row of logits, and whether it counts.

    Args:
        logits (Tensor): (N, C) or (N, C, H, W); only the shape is read.
        labels (Tensor): Integers, (N,) for the former, (N, h, w) for the latter: resized to the
            logits by nearest.
        ignore_index (int): Rows with this label do not count, nor those whose label is no class.

    Returns:
        tuple[Tensor, Tensor]: int64 (N, 1) or (N, 1, H, W), 0 where it does not count; booleans,
        the same shape.

    Raises:
        TypeError: If the labels are not a tensor of integers.
        ValueError: If their shape does not fit.
    """
    if logits.dim() == 2 and isinstance(labels, Tensor):
        if labels.dim() != 1:
            raise ValueError(
                f'labels do not fit the logits: labels {tuple(labels.shape)}, student '
                f'{tuple(logits.shape)}; give one label per image, (N,)'
            )
        classes = labels_at(logits[:, :, None, None], labels[:, None, None])[:, 0]
    else:
        classes = labels_at(logits, labels)[:, None]
    kept = (classes != ignore_index) & (classes >= 0) & (classes < logits.shape[1])
    return classes.masked_fill(~kept, 0), kept


def is_target(logits: Tensor, classes: Tensor) -> Tensor:
    """Where the channel is the class: booleans in the shape of the logits."""
    channels = torch.arange(logits.shape[1], device=logits.device)
    return channels.view(-1, *[1] * (logits.dim() - 2)) == classes


def log_softmax_of_others(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the softmax over all classes but the target's.

    Args:
        logits (Tensor): (N, C, ...) with C of at least 2, in float32 or wider.
        target (Tensor): :func:`is_target` of them.

    Returns:
        tuple[Tensor, Tensor]: (N, C, ...), 0 at the target; ``logsumexp`` of the others,
        (N, 1, ...).
    """
    others = logits.masked_fill(target, -torch.inf).logsumexp(1, keepdim=True)
    return (logits - others).masked_fill(target, 0), others
