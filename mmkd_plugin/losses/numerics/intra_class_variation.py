"""Intra-class feature variation (IFVD) with its gradient by formula; no loop over classes."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.checks import check_shapes, labels_at
from mmkd_plugin.losses.numerics.one_pass import one_pass_by_samples
from mmkd_plugin.tracing import is_compiling

EPS = 1e-8
COUNT_EPS = 1e-6


def intra_class_variation(
    student: Tensor, teacher: Tensor, labels: Tensor, ignore_index: int = 255
) -> Tensor:
    """See :func:`mmkd_plugin.losses.intra_class_variation.intra_class_variation`."""
    check_shapes(student, teacher, same_channels=False)
    segments, number, ignored = classes_at(student, labels, ignore_index)
    compare = partial(variation_gap, number=number, count=max(ignored.numel(), 1))
    return one_pass_by_samples(compare, student.flatten(2), teacher.flatten(2), segments, ignored)


def classes_at(x: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, int, Tensor]:
    """The class of each position of a map, by small numbers.

    Args:
        x (Tensor): A map of the student, (N, C, H, W); only its shape is read.
        labels (Tensor): Integers, (N, h, w).
        ignore_index (int): Positions with this label, or a negative one, are ignored.

    Returns:
        tuple[Tensor, int, Tensor]: The classes, (N, H*W), which differ where the labels in an image
        do; the number that all are below; and where positions are ignored, (N, H*W).
    """
    labels = labels_at(x, labels).flatten(1)
    ignored = (labels == ignore_index) | (labels < 0)
    segments, number = segments_of(labels.masked_fill(ignored, -1))
    return segments, number, ignored


def segments_of(ids: Tensor) -> tuple[Tensor, int]:
    """Number the ids of each image, so that a table of them is small where they are large.

    Args:
        ids (Tensor): int64, at least -1, (N, n).

    Returns:
        tuple[Tensor, int]: The number of each position's id, (N, n), and one that all are below.
    """
    positions = ids.shape[1]
    if is_compiling():  # sizes must not depend on what the labels are
        return ranks(ids), positions
    largest = int(ids.max()) if ids.numel() else -1
    if largest + 2 <= positions:
        return ids + 1, largest + 2
    ids = ranks(ids)
    return ids, int(ids.max()) + 1


def ranks(ids: Tensor) -> Tensor:
    """How many smaller ids occur in the same row: (N, n) to (N, n), int64."""
    ordered, order = ids.sort(1)
    steps = ordered.diff(dim=1, prepend=ordered[:, :1]) != 0
    return torch.empty_like(ids).scatter_(1, order, steps.cumsum(1))


def variation_gap(
    s: Tensor, t: Tensor, segments: Tensor, ignored: Tensor, number: int, count: int
) -> tuple[Tensor, Tensor]:
    """Sum over the positions of ``(cos(S, c_S) - cos(T, c_T))^2 / count``, and its gradient.

    With ``u`` and ``v`` of length 1 along the vector ``x`` of a position and the centre ``c`` of
    its segment, and ``w`` the gradient with respect to ``cos = <u, v>``, ``x`` gets
    ``w (v - cos u) / |x|``. The centre gets ``(g - <g, v> v) / |c|`` with ``g = sum of w u``, and
    passes it on to all positions of the segment, over their number.

    Args:
        s (Tensor): The student's vectors, (N, C_s, n), in float32 or wider.
        t (Tensor): The teacher's vectors, (N, C_t, n).
        segments (Tensor): The segment of each position, (N, n).
        ignored (Tensor): The positions that add 0, (N, n).
        number (int): All segments are below it.
        count (int): The divisor that makes a mean of the sum.

    Returns:
        tuple[Tensor, Tensor]: A scalar, and its gradient with respect to ``s``.
    """
    at, ignored = segments[:, None], ignored[:, None]
    shares = 1 / (sums(torch.ones_like(s[:, :1]), at, number) + COUNT_EPS)
    target, *_ = centre_cosines(t, at, shares)
    cosine, length, centre, centre_length = centre_cosines(s, at, shares)
    # Their own centre: a cosine of 1 in both. They share a segment only to be masked here.
    gap = (cosine - target).masked_fill_(ignored, 0)
    # Vectors no longer than 1e-8 get no gradient, instead of one of up to 1e8.
    weight = (gap * (2 / count) / length).masked_fill_(length <= EPS, 0)
    pull = sums(s * weight, at, number)
    pull -= (pull * centre).sum(1, keepdim=True) * centre
    pull *= (shares / centre_length).masked_fill_(centre_length <= EPS, 0)
    gradient = spread(centre, at).mul_(weight).add_(spread(pull, at))
    return gap.square().sum() / count, gradient.addcmul_(s, weight * cosine / length, value=-1)


def centre_cosines(x: Tensor, at: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The cosine of each vector and the mean of its segment.

    The value is that of :func:`torch.nn.functional.cosine_similarity`, which divides by norms of
    at least 1e-8.

    Args:
        x (Tensor): (N, C, n), in float32 or wider.
        at (Tensor): The segment of each position, (N, 1, n).
        shares (Tensor): The share of one position in the mean of each segment, (N, 1, number).

    Returns:
        tuple[Tensor, ...]: The cosines and the norms, (N, 1, n); the means, divided by their norms,
        (N, C, number), and these norms, (N, 1, number).
    """
    centre = sums(x, at, shares.shape[2]).mul_(shares)
    length, centre_length = norms(x), norms(centre)
    centre /= centre_length
    cosine = spread(centre, at).mul_(x).sum(1, keepdim=True).div_(length)
    return cosine, length, centre, centre_length


def norms(x: Tensor) -> Tensor:
    """The L2 norms along dimension 1, which stays, at least 1e-8."""
    return x.square().sum(1, keepdim=True).sqrt_().clamp_(min=EPS)


def sums(x: Tensor, at: Tensor, number: int) -> Tensor:
    """Add up the vectors of each segment: (N, C, n), segments (N, 1, n), to (N, C, number)."""
    return x.new_zeros(*x.shape[:2], number).scatter_add_(2, at.expand_as(x), x)


def spread(table: Tensor, at: Tensor) -> Tensor:
    """Give each position the entry of its segment: (N, C, number) to (N, C, n)."""
    return table.gather(2, at.expand(-1, table.shape[1], -1))
