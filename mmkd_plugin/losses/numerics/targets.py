"""Logits split by the class of the labels: that class, and all others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.checks import labels_at
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.one_pass import Kernel, one_pass
from mmkd_plugin.losses.numerics.precision import full_precision

#: Takes logits of the student and of the teacher, (N, C, ...), and the class of each row,
#: (N, 1, ...); gives one number for each row, (N, 1, ...).
OfRows = Callable[[Tensor, Tensor, Tensor], Tensor]


def mean_in_pieces(
    of_rows: OfRows,
    student: Tensor,
    teacher: Tensor,
    classes: Tensor,
    kept: Tensor,
    kernel: Kernel,
) -> Tensor:
    """See :func:`mean_of_rows`."""
    maps = [x.flatten(2) if x.dim() > 2 else x for x in (student, teacher, classes, kept)]
    return one_pass(kernel, *maps, dim=2) / kept.sum().clamp(min=1)


@with_fast_form(mean_in_pieces)
def mean_of_rows(
    of_rows: OfRows,
    student: Tensor,
    teacher: Tensor,
    classes: Tensor,
    kept: Tensor,
    kernel: Kernel,
) -> Tensor:
    """The mean over the rows that count, 0 without one.

    Args:
        of_rows (Callable): See :data:`OfRows`.
        student (Tensor): Logits of the student, (N, C) or (N, C, H, W).
        teacher (Tensor): Logits of the teacher, same shape. They get no gradient.
        classes (Tensor): See :func:`target_classes`.
        kept (Tensor): See :func:`target_classes`.
        kernel (Callable): The sum of the rows of a piece that count, with its gradient
            by formula; it takes ``s, t, classes, kept, slope``.

    Returns:
        Tensor: A scalar.
    """
    with full_precision(student, teacher) as (s, t):
        rows = of_rows(s, t, classes).masked_fill(~kept, 0)
        return rows.sum() / kept.sum().clamp(min=1)


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
