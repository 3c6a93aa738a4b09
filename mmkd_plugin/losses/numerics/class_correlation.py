"""Correlations of rows and of classes (DIST) piece by piece, with the gradient by formula."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.autograd import with_gradient
from mmkd_plugin.losses.numerics.checks import check_shapes, kept_positions
from mmkd_plugin.losses.numerics.divergence import probabilities
from mmkd_plugin.losses.numerics.one_pass import through_sums
from mmkd_plugin.losses.numerics.pieces import PIECE, Piece, each_piece, scratch
from mmkd_plugin.losses.numerics.precision import common_type, full_precision, no_autocast

EPS = 1e-8

#: Up to this many logits of images are compared at once: all that is needed fits into the cache.
AT_ONCE = 2 * PIECE


def class_correlation(
    student: Tensor,
    teacher: Tensor,
    tau: float = 1.0,
    inter: float = 1.0,
    intra: float = 1.0,
    labels: Tensor | None = None,
    ignore_index: int | None = None,
) -> Tensor:
    """See :func:`mmkd_plugin.losses.class_correlation.class_correlation`."""
    check_shapes(student, teacher, ndims=(2, 4))
    if not student.numel():
        with full_precision(student, teacher) as (s, _):
            return s.sum()
    if student.dim() == 2 and ignore_index is None and student.numel() <= AT_ONCE:
        return of_rows(student, teacher, tau, inter, intra)
    if student.dim() == 2:  # images are as good as positions
        maps = [x.T.contiguous()[None] for x in (student, teacher)]
    else:
        maps = [x.flatten(2) for x in (student, teacher)]
    count = None
    if ignore_index is not None:
        maps.append(kept_positions(student, labels, ignore_index).flatten(1)[:, None])
        count = maps[2].sum()
    rows = max(len(student) * student.shape[2:].numel(), 1) if count is None else count
    means, equal = of_classes(*maps, tau=tau, rows=rows)

    def sums(
        s: Tensor, t: Tensor, kept: Tensor | None = None, held: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        pair = [probabilities(s, 0, kept, tau, held), probabilities(t, 1, kept, tau)]
        *_, along, a_a, b_b, same = row_products(*pair)
        rho = (along / ((a_a * b_b).sqrt() + EPS)).masked_fill_(same, 0).sum((1, 2))
        a, b = gaps(pair, means, kept)
        products = [torch.mul(*x, out=scratch(a, 2)).sum(2) for x in ((a, b), (a, a), (b, b))]
        found = torch.cat([rho[:, None], *products], 1)
        return found if held is None else (found, held)

    def finish(sums: Tensor) -> Tensor:
        rho, products = sums[:, 0].sum(), sums[:, 1:].sum(0).view(3, -1)
        along, a_a, b_b = (
            x.masked_fill(mask, 0) for x, mask in zip(products, (equal.any(0), *equal))
        )
        lengths = [x.masked_fill(x == 0, 1).sqrt().masked_fill(x == 0, 0) for x in (a_a, b_b)]
        classes = along / (lengths[0] * lengths[1] + EPS)
        mean = rho / (rows if count is None else count.clamp(min=1))
        value = tau**2 * (inter * (1 - mean) + intra * (1 - classes.mean()))
        return value if count is None else value.masked_fill(count == 0, 0)

    def slope_of_sums(
        worth: Tensor, s: Tensor, t: Tensor, kept: Tensor | None = None, held: Tensor | None = None
    ) -> Tensor:
        p = probabilities(s, 0, kept, tau) if held is None else held
        q = probabilities(t, 1, kept, tau)
        of_rho, (of_along, of_a_a, _) = worth[:, :1, None], worth[:, 1:, None].chunk(3, 1)
        a, b, along, a_a, b_b, same = row_products(p, q)
        whole = (a_a * b_b).sqrt() + EPS
        of_b = (of_rho / whole).masked_fill_(same, 0)
        of_a = (of_b * along * b_b.sqrt() / (whole * a_a.sqrt())).masked_fill_(same, 0)
        g = b.mul_(of_b).sub_(a.mul_(of_a))
        g.addcmul_(p, 2 * of_a_a).addcmul_(q, of_along)
        g.sub_(means[0] * 2 * of_a_a + means[1] * of_along)
        g.sub_(torch.mul(p, g, out=scratch(p, 4)).sum(1, keepdim=True))
        return p.mul_(g).div_(tau)  # p is 0 where a position does not count

    return through_sums(sums, finish, *maps, slope_of_sums=slope_of_sums)


def of_rows(student: Tensor, teacher: Tensor, tau: float, inter: float, intra: float) -> Tensor:
    """The loss of logits (N, C) without passes: the gradient of all takes what the value took."""

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        with full_precision(x, teacher) as (s, t):
            p, q = (
                torch.softmax(y / tau if tau != 1 else y, 1, out=scratch(y, number))
                for number, y in enumerate((s, t))
            )
            g, value = torch.zeros_like(p), 0
            for dim, factor in ((1, inter), (0, intra)):
                rho = _correlation(p, q, dim, g, tau**2 * factor / p.shape[1 - dim])
                value = value + factor * (1 - rho.mean())
            g.sub_(torch.mul(p, g, out=scratch(p, 2)).sum(1, keepdim=True))
            return tau**2 * value, g.mul_(p).div_(tau)

    if student.requires_grad and torch.is_grad_enabled():
        return with_gradient(compute, student)
    with torch.no_grad():
        return compute(student)[0]


def _correlation(p: Tensor, q: Tensor, dim: int, g: Tensor, factor: float) -> Tensor:
    """Pearson's correlation along a dimension; ``factor`` times its gradient is taken off ``g``."""
    a, b, along, a_a, b_b, same = row_products(p, q, dim)
    lengths = [x.masked_fill(same, 1).sqrt() for x in (a_a, b_b)]
    whole = lengths[0] * lengths[1] + EPS
    of_b = (factor / whole).masked_fill_(same, 0)
    of_a = of_b * along * lengths[1] / (whole * lengths[0])
    g.sub_(b.mul_(of_b)).add_(a.mul_(of_a))
    return (along / whole).masked_fill_(same, 0)


def of_classes(
    student: Tensor,
    teacher: Tensor,
    kept: Tensor | None = None,
    *,
    tau: float,
    rows: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """The means of the probabilities, (2, 1, C, 1), and whether they are all equal, (2, C)."""
    dtype = common_type(student, teacher)

    def work(piece: Piece) -> Tensor:
        counts = None if kept is None else kept[piece]
        found = []
        for x in (student, teacher):
            p = probabilities(x[piece].to(dtype), 0, counts, tau)
            total, most = p.sum((0, 2)), p.amax((0, 2))
            least = (p if counts is None else p.masked_fill(~counts, torch.inf)).amin((0, 2))
            found.append(torch.stack([total, most, least]))
        return torch.stack(found, 1)

    with torch.no_grad(), no_autocast(student.device.type):
        total, most, least = torch.stack(each_piece(work, student, dim=2)).unbind(1)
        means = total.sum(0) / (rows if kept is None else rows.clamp(min=1))
        return means[:, None, :, None], most.amax(0) <= least.amin(0)


def row_products(p: Tensor, q: Tensor, dim: int = 1) -> tuple[Tensor, ...]:
    """Of each row: gaps to its mean, ``<a, b>``, ``<a, a>``, ``<b, b>``, and if one is constant."""
    a, b = (
        torch.sub(x, x.mean(dim, keepdim=True), out=scratch(x, number))
        for number, x in ((2, p), (3, q))
    )
    along, a_a, b_b = (
        torch.mul(*pair, out=scratch(p, 4)).sum(dim, keepdim=True)
        for pair in ((a, b), (a, a), (b, b))
    )
    # squares underflow: a mean that is rounded does the opposite
    same = [
        (x.amax(dim, keepdim=True) <= x.amin(dim, keepdim=True)) | (squares == 0)
        for x, squares in ((p, a_a), (q, b_b))
    ]
    return a, b, along, a_a, b_b, same[0] | same[1]


def gaps(pair: list[Tensor], means: Tensor, kept: Tensor | None) -> tuple[Tensor, ...]:
    """Probabilities minus the means of their classes, 0 where a position is ignored."""
    found = (
        torch.sub(x, mean, out=scratch(x, number))
        for number, (x, mean) in enumerate(zip(pair, means))
    )
    return tuple(x if kept is None else x.mul_(kept) for x in found)
