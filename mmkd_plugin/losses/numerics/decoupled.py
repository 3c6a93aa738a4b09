"""Divergences of the target class and of the others (DKD, NKD), with their gradients by formula."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_plugin.losses.numerics.divergence import LOG2_E
from mmkd_plugin.losses.numerics.one_pass import Slope
from mmkd_plugin.losses.numerics.pieces import scratch

#: Stands for a class that is left out: its exponential is 0, its difference to itself too.
LEFT_OUT = -1e30


def decoupled(
    s: Tensor,
    t: Tensor,
    classes: Tensor,
    kept: Tensor,
    slope: Slope,
    alpha: float,
    beta: float,
    tau: float,
) -> Tensor:
    """A kernel: ``alpha KL(b_T || b_S) + beta KL(q_T || q_S)``, summed over rows that count.

    See :func:`mmkd_plugin.losses.decoupled.divergences`.
    """
    u, sum_s, z_s = others(s, classes, tau, slope)
    v, sum_t, z_t = others(t, classes, tau, scratch(t))
    gap = torch.sub(v, u, out=scratch(t, 1))
    e_s, e_t = u.exp2_(), v.exp2_()
    apart = gap.mul_(e_t).sum(1, keepdim=True) / (sum_t * LOG2_E) + (sum_s / sum_t).log()
    p_s, p_t, n_s, n_t = z_s.sigmoid(), z_t.sigmoid(), (-z_s).sigmoid(), (-z_t).sigmoid()
    of_target = p_t * (F.logsigmoid(z_t) - F.logsigmoid(z_s))
    of_target += n_t * (F.logsigmoid(-z_t) - F.logsigmoid(-z_s))
    if slope is not None:
        weight = kept / tau
        pull = (p_s * n_t - n_s * p_t) * alpha * weight  # without cancelling where both are certain
        e_s.mul_((beta * weight - pull) / sum_s).addcmul_(e_t, beta * weight / sum_t, value=-1)
        e_s.scatter_(1, classes, pull)
    return (alpha * of_target + beta * apart).masked_fill_(~kept, 0).sum()


def normalized_target(
    s: Tensor, t: Tensor, classes: Tensor, kept: Tensor, slope: Slope, tau: float, gamma: float
) -> Tensor:
    """A kernel: ``-p_T(y) log p_S(y) - gamma tau^2 sum q_T log q_S``, summed over rows that count.

    See :func:`mmkd_plugin.losses.normalized_target.cross_entropies`.
    """
    u, sum_s, z_s = others(s, classes, tau, slope)
    v, sum_t, z_t = others(t, classes, tau, scratch(t))
    every = None
    if tau != 1:  # the part of the label has no temperature
        every = torch.mul(u, tau, out=scratch(s, 1)).exp2_()
        sum_all = every.sum(1, keepdim=True)
        wide = torch.mul(v, tau, out=scratch(t, 2)).exp2_().sum(1, keepdim=True)
        z_s = (z_s + sum_s.log()) * tau - sum_all.log()
        z_t = (z_t + sum_t.log()) * tau - wide.log()
    e_t = v.exp2_()
    apart = sum_s.log() - torch.mul(u, e_t, out=scratch(t, 2)).sum(1, keepdim=True) / (
        sum_t * LOG2_E
    )
    e_s, p_t, n_s = u.exp2_(), z_t.sigmoid(), (-z_s).sigmoid()
    if slope is not None:
        pull = p_t * n_s * kept
        weight = gamma * tau * kept
        shift = pull / sum_s if every is None else 0
        e_s.mul_(weight / sum_s + shift).addcmul_(e_t, weight / sum_t, value=-1)
        if every is not None:
            e_s.addcmul_(every, pull / sum_all)
        e_s.scatter_(1, classes, -pull)
    rows = gamma * tau**2 * apart - p_t * F.logsigmoid(z_s)
    return rows.masked_fill_(~kept, 0).sum()


def others(
    x: Tensor, classes: Tensor, tau: float, out: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """All classes but one: ``(x - max) / tau`` in units of ln 2, and what that says of the one.

    Args:
        x (Tensor): Logits, (N, C, ...).
        classes (Tensor): The class of each row, (N, 1, ...).
        tau (float): Temperature.
        out (Tensor, optional): Where to write them.

    Returns:
        tuple[Tensor, Tensor, Tensor]: The numbers, with 0 as their exponential at the class; the
        sum of the exponentials, (N, 1, ...); the logit of the class against all others together.
    """
    y = x.gather(1, classes)
    out = torch.empty_like(x) if out is None else out
    x = out.copy_(x).scatter_(1, classes, LEFT_OUT)
    most = x.amax(1, keepdim=True)
    x.sub_(most).mul_(LOG2_E / tau)
    total = torch.exp2(x, out=scratch(x, 3)).sum(1, keepdim=True)
    return x, total, (y - most) / tau - total.log()
