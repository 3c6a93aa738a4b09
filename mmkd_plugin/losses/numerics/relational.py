"""Relational distillation (RKD) through squared distances in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_plugin.losses.numerics.autograd import refuse_second_derivative, with_gradient
from mmkd_plugin.losses.numerics.one_pass import empty_map
from mmkd_plugin.losses.numerics.pieces import PIECE, Piece, each_piece, scratch
from mmkd_plugin.losses.numerics.precision import common_type, no_autocast, widest
from mmkd_plugin.losses.numerics.vectors import lengths, through_lengths
from mmkd_plugin.tracing import is_compiling

# Points coincide where the square of their distance is within the rounding of its terms, sums of D
# products: this many times eps * sqrt(D). With D = 1e6, in float64, they do at a distance
# of 2e-6 of the size of the cloud.
ROUNDING = 16

#: How many triples of points to compare at once.
TRIPLES = 2**18

#: Points of at most so many coordinates together are as cheap to hold in float64 as anything.
FEW = PIECE


def distance_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """See :func:`mmkd_plugin.losses.relational.distance_gap`."""
    return _compare_squares(gap_of_distances, student, teacher)


def angle_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """See :func:`mmkd_plugin.losses.relational.angle_gap`."""
    return _compare_squares(gap_of_angles, student, teacher)


def _compare_squares(
    compare: Callable[..., tuple[Tensor, Tensor]], student: Tensor, teacher: Tensor
) -> Tensor:
    dtype, teacher = common_type(student, teacher), teacher.detach()
    with no_autocast(student.device.type):
        if max(student.numel(), teacher.numel()) <= FEW and not is_compiling():
            return with_gradient(partial(_of_few, compare, teacher, dtype), student)
        squares, target = SquaredDistances.apply(student), squared_distances(teacher)
        return with_gradient(partial(compare, target=target), squares).to(dtype)


def _of_few(
    compare: Callable[..., tuple[Tensor, Tensor]],
    teacher: Tensor,
    dtype: torch.dtype,
    student: Tensor,
) -> tuple[Tensor, Tensor]:
    """The value, and its gradient with respect to the points, with wider copies of all points."""
    pair, wide = (student, teacher), widest(student)
    points, others = (centred(x, scratch(x, i, wide)) for i, x in enumerate(pair))
    squares, target = (without_rounding(x @ x.mT, x.shape[2]) for x in (points, others))
    value, slope = compare(squares, target)
    gradient = torch.bmm(laplacian(slope), points, out=scratch(points, 2))
    return value.to(dtype), gradient.to(dtype, copy=True)  # the memory is lent


def gap_of_distances(squares: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Smooth-L1 between the distances of all pairs of points, in units of their mean.

    With ``r = d / mean(d)`` and ``g`` the gradient with respect to ``r``, that with respect to a
    distance is ``(g - <g, r> / number of distances) / mean(d)``.

    Args:
        squares (Tensor): :func:`squared_distances` of the student, (B, M, M): B sets, each compared
            by itself.
        target (Tensor): Those of the teacher.

    Returns:
        tuple[Tensor, Tensor]: A scalar, the mean over all B*M^2 entries, and its gradient with
        respect to ``squares``.
    """
    distances = squares.sqrt()
    (relative, mean, number), count = relative_to_mean(distances), max(squares.numel(), 1)
    gap = relative - relative_to_mean(target.sqrt())[0]
    slope = gap.clamp(-1, 1)
    value = (gap.sub_(slope / 2) * slope).sum() / count  # slope^2 / 2, or abs(gap) - 1/2
    of_mean = (slope * relative).sum((1, 2), keepdim=True) / number
    # d = sqrt(d^2), and zeros get no gradient
    slope.sub_(of_mean).div_(distances.mul_(mean * (2 * count))).masked_fill_(squares == 0, 0)
    return value, slope


def relative_to_mean(distances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distances over the mean of those above 0, this mean, and how many these are.

    Args:
        distances (Tensor): (B, M, M).

    Returns:
        tuple[Tensor, Tensor, Tensor]: (B, M, M); (B, 1, 1); (B, 1, 1). Where there is no distance
        above 0, the mean and the number are 1.
    """
    number = (distances != 0).sum((1, 2), keepdim=True).clamp(min=1)
    mean = distances.sum((1, 2), keepdim=True) / number
    mean = mean.masked_fill(mean == 0, 1)
    return distances / mean, mean, number


def gap_of_angles(squares: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Smooth-L1 between the cosines of the angles in all triples of points.

    The vertices are taken a few at a time, so that not all triples are held at once.

    With ``g`` the gradient with respect to ``cos = (ab^2 + ac^2 - bc^2) / (2 ab ac)``, that with
    respect to ``ab^2`` is ``g / (2 ab ac) - g cos / (2 ab^2)``, to ``ac^2`` likewise, and to
    ``bc^2`` it is ``-g / (2 ab ac)``.

    Args:
        squares (Tensor): :func:`squared_distances` of the student, (B, M, M): B sets, each compared
            by itself.
        target (Tensor): Those of the teacher.

    Returns:
        tuple[Tensor, Tensor]: A scalar, the mean over all B*M^3 entries, and its gradient with
        respect to ``squares``.
    """
    batch, points, _ = squares.shape
    count = max(batch * points**3, 1)
    inverse, value = inverse_distances(squares), squares.new_zeros(())
    gradient = torch.zeros_like(squares)
    for vertices in groups_of_vertices(batch, points):
        cosine, halves = cosines(squares, vertices)
        other, _ = cosines(target, vertices)
        value = value + smooth_l1(cosine, other)
        slope = (cosine - other).clamp_(-1, 1)
        along = (slope * cosine).sum(3) * inverse[:, vertices].square()
        across = slope.mul_(halves)
        # b and c may change places, which makes the gradients of both sides equal
        gradient[:, vertices] += 2 * across.sum(3) - along
        gradient -= across.sum(1)
    return value / count, gradient.div_(count)


def groups_of_vertices(batch: int, points: int) -> list[slice]:
    """A few points at a time, so that the triples are few; all while torch.compile traces."""
    if is_compiling():
        return [slice(None)]
    step = max(TRIPLES // max(batch * points**2, 1), 1)
    return [slice(start, start + step) for start in range(0, points, step)]


def cosines(squares: Tensor, vertices: slice) -> tuple[Tensor, Tensor]:
    """``<e_ab, e_ac>`` with ``e_ab = (x_b - x_a) / ||x_b - x_a||``, 0 where points coincide.

    By the law of cosines ``<x_b - x_a, x_c - x_a> = (ab^2 + ac^2 - bc^2) / 2``, so nothing larger
    than the result is needed, whatever D is.

    Args:
        squares (Tensor): (B, M, M).
        vertices (slice): The points to take as a.

    Returns:
        tuple[Tensor, Tensor]: The cosines and ``1 / (2 ab ac)``, (B, A, M, M), indexed by a, b, c.
    """
    ab, inverse = squares[:, vertices], inverse_distances(squares)[:, vertices]
    halves = (inverse / 2)[:, :, :, None] * inverse[:, :, None, :]
    inner = (ab[:, :, :, None] + ab[:, :, None, :]).sub_(squares[:, None])  # digits cancel here
    return inner.mul_(halves), halves


def inverse_distances(squares: Tensor) -> Tensor:
    """``1 / ||x_i - x_j||``, 0 where points coincide."""
    return squares.masked_fill(squares == 0, math.inf).rsqrt()


def smooth_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum over all entries, with beta = 1."""
    return F.smooth_l1_loss(student, teacher, reduction='sum')


class SquaredDistances(torch.autograd.Function):
    """``||x_i - x_j||^2`` for all pairs of points, (B, M, D) to (B, M, M) in float64.

    Flattened maps have millions of entries, so B*M*M*D must not be held, nor a wider copy of the
    points. The usual way out, ``|a|^2 + |b|^2 - 2*a*b``, loses the digits of float32 where points
    are close to each other. Here it runs in float64, with the origin amid the points, some
    coordinates after the others; the backward pass sums ``x_i - x_j`` in the same manner. Points
    that coincide have a distance of exactly 0.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return squared_distances(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        refuse_second_derivative()
        (x,) = ctx.saved_tensors
        of_points, gradient = laplacian(grad), empty_map(x, x.dtype)

        def work(piece: Piece) -> None:
            gradient[piece] = of_points[piece[0]] @ centred(x[piece])

        each_piece(work, x, dim=2)
        return gradient


def of_length_1(x: Tensor, dtype: torch.dtype) -> Tensor:
    """See :func:`mmkd_plugin.losses.relational.of_length_1`."""
    return UnitVectors.apply(x, dtype)


class UnitVectors(torch.autograd.Function):
    """Vectors along dimension 1 over their lengths, in a wider type. It saves the vectors alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x)
        x = x.to(dtype)
        return x / lengths_of_vectors(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative()
        (saved,) = ctx.saved_tensors
        x = saved.to(grad.dtype)
        return through_lengths(grad, x, lengths_of_vectors(x)).to(saved.dtype), None


def lengths_of_vectors(x: Tensor) -> Tensor:
    """The norms along dimension 1, which stays; infinite where they are at most 1e-12."""
    return lengths(x, 1e-12)  # a constant of the module would be a symbol to torch.compile


def squared_distances(x: Tensor) -> Tensor:
    """See :class:`SquaredDistances`."""

    def work(piece: Piece) -> tuple[slice, Tensor]:
        part = centred(x[piece])
        return piece[0], part @ part.mT

    products = x.new_zeros(len(x), x.shape[1], x.shape[1], dtype=widest(x))
    for samples, product in each_piece(work, x, dim=2):
        products[samples] += product
    return without_rounding(products, x.shape[2])


def without_rounding(products: Tensor, dimensions: int) -> Tensor:
    """Squared distances from products of so many coordinates, 0 where they are rounding alone."""
    squares = products.diagonal(dim1=1, dim2=2).clone()  # far apart in memory
    sums = squares[:, :, None] + squares[:, None, :]
    squares = torch.sub(sums, products, alpha=2)
    rounding = ROUNDING * torch.finfo(products.dtype).eps * dimensions**0.5
    return squares.masked_fill_(squares <= sums.mul_(rounding), 0)


def laplacian(slope: Tensor) -> Tensor:
    """The matrix that takes points to ``sum over j of 2 * (slope_ij + slope_ji) * (x_i - x_j)``."""
    weights = slope + slope.mT
    sums, weights = weights.sum(2), weights.mul_(-2)
    weights.diagonal(dim1=1, dim2=2).add_(sums, alpha=2)
    return weights


def centred(x: Tensor, memory: Tensor | None = None) -> Tensor:
    """The points in float64, with their mean at 0; in memory of that type, if there is some."""
    x = x.to(widest(x)) if memory is None else memory.copy_(x)
    return torch.sub(x, x.mean(1, keepdim=True), out=memory)
