"""Local similarity (LOCAL), each pair of neighbours compared once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.autograd import with_gradient
from mmkd_plugin.losses.numerics.checks import check_shapes
from mmkd_plugin.losses.numerics.one_pass import empty_map
from mmkd_plugin.losses.numerics.pieces import Piece, each_piece
from mmkd_plugin.losses.numerics.precision import common_type, no_autocast
from mmkd_plugin.losses.numerics.vectors import lengths_from

# Row after row, a map is a line of n positions. Four neighbours of a position lie ahead on it, as
# many steps each as `steps_ahead` says, and four behind. At the ends of a row a step leads to the
# wrong position, but then neither of the two is an interior one, and so none of them counts.


def local_similarity(student: Tensor, teacher: Tensor, similarity: str = 'distance') -> Tensor:
    """See :func:`mmkd_plugin.losses.local_similarity.local_similarity`."""
    check_shapes(student, teacher, same_channels=False)
    batch, _, height, width = student.shape
    dtype = common_type(student, teacher)
    if min(height, width) < 3:
        return student[:0].to(dtype).sum()  # 0, connected to the student
    compare = partial(
        dict(distance=distance_gap, cosine=cosine_gap)[similarity],
        t=teacher.flatten(2),
        steps=steps_ahead(width),
        inside=interior(height, width, student.device),
        count=max(batch * (height - 2) * (width - 2), 1),
        dtype=dtype,
    )
    with no_autocast(student.device.type):
        return with_gradient(compare, student.flatten(2))


def steps_ahead(width: int) -> tuple[int, ...]:
    """From a position to the neighbours on its right, and below it from left to right."""
    return 1, width - 1, width, width + 1


def interior(height: int, width: int, device: torch.device) -> Tensor:
    """Which positions have all eight neighbours: booleans, (1, H*W)."""
    rows, columns = (torch.arange(n, device=device) for n in (height, width))
    rows, columns = ((x > 0) & (x < len(x) - 1) for x in (rows, columns))
    return (rows[:, None] & columns).view(1, -1)


def distance_gap(
    s: Tensor, t: Tensor, steps: Sequence[int], inside: Tensor, count: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Sum of ``(m(S) - m(T))^2 / count`` of the interior positions, and its gradient.

    ``m(q)`` adds up the squared distances of ``x_q`` and its neighbours. A pair of neighbours
    belongs to the sums of both: with ``w`` what comes back to ``m``, 0 at the border, the first of
    them gets ``2 (w_first + w_second) (x_first - x_second)`` and the second the opposite.

    Args:
        s (Tensor): The student's vectors, (N, C_s, n), of any floating-point type.
        t (Tensor): The teacher's vectors, (N, C_t, n).
        steps (Sequence[int]): See :func:`steps_ahead`.
        inside (Tensor): See :func:`interior`.
        count (int): The divisor that makes a mean of the sum.
        dtype (torch.dtype): The type to compute in, float32 or wider.

    Returns:
        tuple[Tensor, Tensor]: A scalar, and its gradient with respect to ``s``.
    """
    m_s, m_t = (at_both(compare_pairs(x, steps, squared_difference, dtype), steps) for x in (s, t))
    gap = (m_s - m_t).masked_fill_(~inside, 0)
    weight = (gap * 4 / count)[:, None]
    weights = [weight[..., :-step] + weight[..., step:] for step in steps]
    gradient = empty_map(s, dtype)

    def work(piece: Piece) -> None:
        x, g = s[piece].to(dtype), gradient[piece].zero_()
        for step, weight in zip(steps, weights):
            difference = x[..., :-step] - x[..., step:]
            g[..., :-step].addcmul_(difference, weight[piece[0]])
            g[..., step:].addcmul_(difference, weight[piece[0]], value=-1)

    each_piece(work, s, dim=1)
    return gap.square().sum() / count, gradient


def cosine_gap(
    s: Tensor, t: Tensor, steps: Sequence[int], inside: Tensor, count: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Sum of ``(cos_S - cos_T)^2 / (8 count)`` of all interior positions and their neighbours.

    A pair counts once for each of the two that is an interior position. With ``w`` what comes back
    to its cosine, ``x`` gets ``w (y / |y| - cos x / |x|) / |x|`` from its neighbour ``y``.

    Args:
        s (Tensor): The student's vectors, (N, C_s, n), of any floating-point type.
        t (Tensor): The teacher's vectors, (N, C_t, n).
        steps (Sequence[int]): See :func:`steps_ahead`.
        inside (Tensor): See :func:`interior`.
        count (int): How many interior positions there are.
        dtype (torch.dtype): The type to compute in, float32 or wider.

    Returns:
        tuple[Tensor, Tensor]: A scalar, and its gradient with respect to ``s``.
    """
    (length, cosines), (_, targets) = (pair_cosines(x, steps, dtype) for x in (s, t))
    counted = inside.to(dtype)
    value, to_neighbour, to_itself = 0.0, [], []
    for step, cosine, target in zip(steps, cosines, targets):
        gap = cosine - target
        weight = (counted[:, :-step] + counted[:, step:]) * gap / (8 * count)
        value = value + (weight * gap).sum()
        to_itself.append(weight * 2 * cosine)
        to_neighbour.append((weight * 2 / length[:, :-step] / length[:, step:])[:, None])
    own = (at_both(to_itself, steps) / length.square())[:, None]
    gradient = empty_map(s, dtype)

    def work(piece: Piece) -> None:
        x = s[piece].to(dtype)
        g = torch.mul(x, -own[piece[0]], out=gradient[piece])
        for step, weight in zip(steps, to_neighbour):
            g[..., :-step].addcmul_(x[..., step:], weight[piece[0]])
            g[..., step:].addcmul_(x[..., :-step], weight[piece[0]])

    each_piece(work, s, dim=1)
    return value, gradient


def pair_cosines(
    x: Tensor, steps: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """The cosines of the vectors that are a step apart, see :func:`compare_pairs`.

    Args:
        x (Tensor): (N, C, n), of any floating-point type.
        steps (Sequence[int]): See :func:`steps_ahead`.
        dtype (torch.dtype): The type to compute in.

    Returns:
        tuple[Tensor, list[Tensor]]: The :func:`lengths_from` the vectors' squares, (N, n): where
        one is infinite, cosines are 0. For each step, (N, n - step).
    """
    squares, *products = compare_pairs(x, (0, *steps), torch.mul, dtype)
    length = lengths_from(squares)
    return length, [
        product / length[:, :-step] / length[:, step:] for product, step in zip(products, steps)
    ]


def compare_pairs(
    x: Tensor,
    steps: Sequence[int],
    compare: Callable[[Tensor, Tensor], Tensor],
    dtype: torch.dtype,
) -> list[Tensor]:
    """Compare the positions that are a step apart, element by element, and add the channels up.

    Args:
        x (Tensor): (N, C, n), of any floating-point type.
        steps (Sequence[int]): Each less than n.
        compare (Callable): Takes two tensors of one shape and returns a third.
        dtype (torch.dtype): The type to compute in.

    Returns:
        list[Tensor]: For each step, (N, n - step).
    """
    batch, _, count = x.shape
    totals = [x.new_zeros(batch, count - step, dtype=dtype) for step in steps]

    def work(piece: Piece) -> tuple[slice, list[Tensor]]:
        part = x[piece].to(dtype)
        return piece[0], [
            compare(part[..., : count - step], part[..., step:]).sum(1) for step in steps
        ]

    for samples, sums in each_piece(work, x, dim=1):
        for total, sum_of_part in zip(totals, sums):
            total[samples] += sum_of_part
    return totals


def squared_difference(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square_()


def at_both(pairs: Sequence[Tensor], steps: Sequence[int]) -> Tensor:
    """Add the values of pairs up at both of their positions: (N, n - step) each to (N, n)."""
    total = pairs[0].new_zeros(len(pairs[0]), pairs[0].shape[1] + steps[0])
    for pair, step in zip(pairs, steps):
        total[:, :-step] += pair
        total[:, step:] += pair
    return total
