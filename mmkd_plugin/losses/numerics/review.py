"""Maps compared at several scales (ReviewKD) in one pass, with the gradient by formula."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.one_pass import Slope, one_pass
from mmkd_plugin.losses.numerics.pieces import scratch
from mmkd_plugin.losses.numerics.pooling import adaptive_shares
from mmkd_plugin.losses.numerics.precision import common_type


def hierarchical_context(student: Tensor, teacher: Tensor, factors: dict[int, float]) -> Tensor:
    """``sum over k of factor * mean of the squared differences of both pooled to k x k``.

    All poolings are two products of matrices: one sums the rows of their windows up, the other one
    the columns.

    Args:
        student (Tensor): Map of the student, (N, C, H, W), of any floating-point type.
        teacher (Tensor): Map of the teacher, same shape. It gets no gradient.
        factors (dict[int, float]): The factor for each k; k = 0 stands for no pooling.

    Returns:
        Tensor: A scalar.
    """
    planes, sides = max(student.shape[:2].numel(), 1), [k for k in factors if k]
    plain = factors[0] / (planes * max(student.shape[2:].numel(), 1))
    if not sides:
        return one_pass(_Context(plain), *(x.flatten(0, 1) for x in (student, teacher)), dim=3)
    like = dict(dtype=common_type(student, teacher), device=student.device)
    rows, columns = (
        torch.cat([adaptive_shares(size, k, **like) for k in sides]) for size in student.shape[2:]
    )
    blocks = [torch.full((k, k), factors[k] / (planes * k**2), **like) for k in sides]
    kernel = _Context(plain, rows, columns, torch.block_diag(*blocks))
    return one_pass(kernel, *(x.flatten(0, 1) for x in (student, teacher)), dim=3)


class _Context:
    """A kernel: the part of the loss that comes from some planes, (n, H, W).

    Args:
        plain (float): Factor on the squared differences.
        pooling (Tensor): Which share each row has in each window of rows, (K, H); the same of
            columns, (K, W); the factor on each pair of windows, (K, K), 0 for windows of two k.
    """

    def __init__(self, plain: float, *pooling: Tensor) -> None:
        self.plain, self.pooling = plain, pooling

    def __call__(self, s: Tensor, t: Tensor, slope: Slope) -> Tensor:
        gap = torch.sub(s, t, out=scratch(s) if slope is None else slope)
        value = torch.mul(gap, gap, out=scratch(s, 1)).sum() * self.plain
        if self.pooling:
            rows, columns, factors = self.pooling
            rows = rows.expand(len(gap), -1, -1)
            pooled = rows @ gap @ columns.mT
            worth = pooled * factors
            value = value + (worth * pooled).sum()
            if slope is not None:
                slope.baddbmm_(rows.mT, worth.mul_(2) @ columns, beta=2 * self.plain)
        elif slope is not None:
            slope.mul_(2 * self.plain)
        return value
