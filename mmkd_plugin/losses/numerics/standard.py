"""Maps brought to mean 0 and standard deviation 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.autograd import refuse_second_derivative
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.one_pass import Kernel, Slope
from mmkd_plugin.losses.numerics.pieces import scratch
from mmkd_plugin.losses.numerics.precision import common_type

Dims = tuple[int, ...]

#: What is added to the deviation of logits (LSKD).
STANDARD_EPS = 1e-7


def standardised_at_once(x: Tensor, dims: Dims, eps: float) -> Tensor:
    """See :func:`standardised`."""
    return Standardised.apply(x, dims, eps)


@with_fast_form(standardised_at_once)
def standardised(x: Tensor, dims: Dims, eps: float) -> Tensor:
    """``(x - mean) / (std + eps)``, with the unbiased standard deviation.

    Numbers that are all equal, a single one among them, become 0 and get no gradient. Divided by
    ``eps`` it would be so large that float16 turns it into infinity. The same holds for numbers so
    close that the squares of their gaps are 0 (1e-23 in float32).

    Args:
        x (Tensor): Of any shape and any floating-point type.
        dims (tuple[int, ...]): Where the numbers lie that have one mean.
        eps (float): See above.

    Returns:
        Tensor: The shape of ``x``, in float32 or wider.
    """
    x = x.to(common_type(x, x))
    gap = x - x.mean(dims, keepdim=True)
    squares = gap.square().sum(dims, keepdim=True) / max(_count(x, dims) - 1, 1)
    equal = _all_equal(x, squares, dims)
    return (gap / (squares.masked_fill(equal, 1).sqrt() + eps)).masked_fill(equal, 0)


class Standardised(torch.autograd.Function):
    """:func:`standardised`, which saves ``x`` alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: Dims, eps: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.dims, ctx.eps = dims, eps
        gap, std = _spread(x.to(common_type(x, x)), dims)
        return gap.div_(std + eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        refuse_second_derivative()
        (x,) = ctx.saved_tensors
        gap, std = _spread(x.to(grad.dtype), ctx.dims)
        slope = _back(grad.clone(), gap, std, ctx.dims, ctx.eps)
        return slope.to(x.dtype), None, None


def of_standardised(kernel: Kernel, dim: int, eps: float = STANDARD_EPS) -> Kernel:
    """A kernel that first brings both models' numbers along a dimension to mean 0, deviation 1."""

    def run(s: Tensor, t: Tensor, *others: Tensor, slope: Slope) -> Tensor:
        (gap, std), (far, wide) = (
            _spread(x, (dim,), out=scratch(x, number)) for number, x in ((5, s), (6, t))
        )
        z = torch.div(gap, std + eps, out=scratch(s, 7))
        value = kernel(z, far.div_(wide + eps), *others, slope=slope)
        if slope is not None:
            _back(slope, gap, std, (dim,), eps)
        return value

    return run


def _spread(x: Tensor, dims: Dims, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``x - mean`` and the standard deviation, which is infinite where all numbers are equal."""
    gap = torch.sub(x, x.mean(dims, keepdim=True), out=out)
    squares = gap.square().sum(dims, keepdim=True) / max(_count(x, dims) - 1, 1)
    return gap, squares.masked_fill_(_all_equal(x, squares, dims), torch.inf).sqrt_()


def _back(grad: Tensor, gap: Tensor, std: Tensor, dims: Dims, eps: float) -> Tensor:
    """From the gradient of ``gap / (std + eps)`` that of the numbers; both are written over."""
    # with d = x - mean: (g - mean(g)) / (std + eps) - d <g, d> / ((n - 1) std (std + eps)^2)
    along = (grad * gap).sum(dims, keepdim=True) / (max(_count(gap, dims) - 1, 1) * std)
    grad.sub_(grad.mean(dims, keepdim=True))
    return grad.sub_(gap.mul_(along / (std + eps))).div_(std + eps)


def _count(x: Tensor, dims: Dims) -> int:
    return torch.Size([x.shape[dim] for dim in dims]).numel()


def _all_equal(x: Tensor, squares: Tensor, dims: Dims) -> Tensor:
    """Where all numbers are equal, or so close that the squares of their gaps are 0."""
    if not x.numel():
        return torch.zeros_like(squares, dtype=torch.bool)
    x = x.detach()
    # a mean that is rounded leaves gaps between equal numbers
    return (x.amax(dims, keepdim=True) == x.amin(dims, keepdim=True)) | (squares == 0)
