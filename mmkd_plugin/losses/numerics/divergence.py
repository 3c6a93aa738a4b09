"""Divergence of the student's classes from the teacher's, at a temperature."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.one_pass import Slope, one_pass
from mmkd_plugin.losses.numerics.pieces import scratch
from mmkd_plugin.losses.numerics.standard import of_standardised

#: 2 to the power of x is several times as fast as e to the power of x on a CPU.
LOG2_E = math.log2(math.e)


def divergence(
    student: Tensor,
    teacher: Tensor,
    weight: float | Tensor,
    tau: float,
    dim: int,
    sigmoid: bool = False,
    standardize: bool = False,
) -> Tensor:
    """``sum of weight * KL(p_tau(teacher) || p_tau(student))``.

    With ``p_tau(x) = softmax(x / tau)`` along ``dim``, or ``sigmoid(x / tau)`` in each element:
    then the divergences along ``dim`` are added up.

    Args:
        student (Tensor): Logits, (N, C) or (N, C, L), of any floating-point type.
        teacher (Tensor): Logits of the same shape. They get no gradient.
        weight (float | Tensor): Factor on all divergences, or one on each: the shape of the logits
            with 1 along ``dim``.
        tau (float): Temperature.
        dim (int): The dimension of the classes.
        sigmoid (bool): Whether the classes are independent. Defaults to False.
        standardize (bool): Whether logits are first brought to mean 0 and deviation 1 along
            ``dim``. Defaults to False.

    Returns:
        Tensor: A scalar.
    """
    kernel = partial(_bernoulli if sigmoid else categorical, tau=tau, dim=dim)
    others = (weight,) if isinstance(weight, Tensor) else ()
    kernel = kernel if others else partial(kernel, weight=weight)
    kernel = of_standardised(kernel, dim) if standardize else kernel
    return one_pass(kernel, student, teacher, *others, dim=3 - dim)  # distributions stay whole


def categorical(
    s: Tensor, t: Tensor, weight: float | Tensor, tau: float, dim: int, slope: Slope
) -> Tensor:
    """:func:`divergence` as a kernel, see :data:`~mmkd_plugin.losses.numerics.one_pass.Kernel`.

    Logits may have any shape, and ``slope`` may be those of the student, which are then lost.
    """
    # with u = s - max(s) and v = t - max(t), both in units of tau * ln(2):
    # KL = ln(2) * sum(p_t * (v - u)) + ln(sum(2^u) / sum(2^v))
    u = torch.sub(s, s.amax(dim, keepdim=True), out=slope).mul_(LOG2_E / tau)
    v = torch.sub(t, t.amax(dim, keepdim=True), out=scratch(t)).mul_(LOG2_E / tau)
    gap = torch.sub(v, u, out=scratch(t, 1))
    p_s, p_t = u.exp2_(), v.exp2_()
    sum_s, sum_t = p_s.sum(dim, keepdim=True), p_t.sum(dim, keepdim=True)
    kl = gap.mul_(p_t).sum(dim, keepdim=True) / (sum_t * LOG2_E) + (sum_s / sum_t).log()
    if slope is not None:
        p_s.mul_(weight / (tau * sum_s)).addcmul_(p_t, weight / (tau * sum_t), value=-1)
    return (kl * weight).sum()


def _bernoulli(
    s: Tensor, t: Tensor, weight: float | Tensor, tau: float, dim: int, slope: Slope
) -> Tensor:
    # ln(sigmoid(x)) = -relu(-x) - tail(x), and the tail ln(1 + e^-|x|) is the same for x and -x
    s, t = s / tau, t / tau
    p_s, p_t, q_s, q_t = s.sigmoid(), t.sigmoid(), s.neg().sigmoid_(), t.neg().sigmoid_()
    kl = _tail(s) - _tail(t)
    kl += (s.relu() - t.relu()).mul_(q_t)
    kl += (s.neg_().relu_() - t.neg_().relu_()).mul_(p_t)
    if slope is not None:  # p_s - p_t, without cancelling where both are close to 1
        torch.mul(p_s, q_t, out=slope).sub_(q_s.mul_(p_t)).mul_(weight / tau)
    return (kl * weight).sum()


def _tail(x: Tensor) -> Tensor:
    return x.abs().mul_(-LOG2_E).exp2_().log1p_()


def probabilities(
    x: Tensor,
    number: int = 0,
    kept: Tensor | None = None,
    tau: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """The softmax of logits over dimension 1, in the memory of :func:`.pieces.scratch`.

    Args:
        x (Tensor): Logits, (N, C, n).
        number (int): See :func:`.pieces.scratch`. Defaults to 0.
        kept (Tensor, optional): Booleans (N, 1, n); where they are False, all is 0.
        tau (float): Temperature. Defaults to 1.0.
        out (Tensor, optional): Other memory to use.
    """
    out = scratch(x, number) if out is None else out
    factor = LOG2_E / tau
    # (x - max) * factor in one operation: an error that all classes share means nothing
    p = torch.add(x.amax(1, keepdim=True).mul_(-factor), x, alpha=factor, out=out).exp2_()
    total = p.sum(1, keepdim=True)
    return p.div_(total if kept is None else total.masked_fill_(~kept, torch.inf))
