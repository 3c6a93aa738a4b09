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
    u, e_s, sum_s, log_s, z_s = others(s, classes, tau, slope)
    v, e_t, sum_t, log_t, z_t = others(t, classes, tau, None, number=2)
    gap = v.sub_(u).mul_(e_t).sum(1, keepdim=True)
    apart = gap / (sum_t * LOG2_E) + (log_s - log_t)
    z = torch.stack([z_s, z_t])
    z = torch.stack([z, -z])
    p, log_p = (x.unbind(1) for x in (z.sigmoid(), F.logsigmoid(z)))
    of_target = (p[1] * (log_p[1] - log_p[0])).sum(0)
    if slope is not None:
        (p_s, n_s), (p_t, n_t) = (x.unbind(0) for x in p)
        weight = kept * (beta / tau)
        pull = p_s * n_t - n_s * p_t  # without cancelling where both are certain
        pull *= kept * (alpha / tau)
        e_s.mul_((weight - pull) / sum_s).addcmul_(e_t, weight / sum_t, value=-1)
        e_s.scatter_(1, classes, pull)
    return apart.mul_(beta).add_(of_target, alpha=alpha).mul_(kept).sum()


def normalized_target(
    s: Tensor, t: Tensor, classes: Tensor, kept: Tensor, slope: Slope, tau: float, gamma: float
) -> Tensor:
    """A kernel: ``-p_T(y) log p_S(y) - gamma tau^2 sum q_T log q_S``, summed over rows that count.

    See :func:`mmkd_plugin.losses.normalized_target.cross_entropies`.
    """
    u, e_s, sum_s, log_s, z_s = others(s, classes, tau, slope)
    v, e_t, sum_t, log_t, z_t = others(t, classes, tau, None, number=2)
    apart = log_s - torch.mul(u, e_t, out=scratch(t, 4)).sum(1, keepdim=True) / (sum_t * LOG2_E)
    every = None
    if tau != 1:  # the part of the label has no temperature
        every, wide = u.mul_(tau).exp2_(), v.mul_(tau).exp2_()
        sum_all, sum_wide = every.sum(1, keepdim=True), wide.sum(1, keepdim=True)
        z_s = (z_s + log_s) * tau - sum_all.log()
        z_t = (z_t + log_t) * tau - sum_wide.log()
    p_t, n_s = z_t.sigmoid(), (-z_s).sigmoid()
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
    x: Tensor, classes: Tensor, tau: float, out: Tensor | None, number: int = 0
) -> tuple[Tensor, ...]:
    """All classes but one: ``(x - max) / tau`` in units of ln 2, and what that says of the one.

    Args:
        x (Tensor): Logits, (N, C, ...).
        classes (Tensor): The class of each row, (N, 1, ...).
        tau (float): Temperature.
        out (Tensor, optional): Where to write the exponentials.
        number (int): See :func:`.pieces.scratch`; it takes this one and the next. Defaults to 0.

    Returns:
        tuple[Tensor, ...]: The numbers; their exponentials, 0 at the class; the sum of these,
        (N, 1, ...), and its logarithm; the logit of the class against all others together.
    """
    powers = scratch(x, number)
    powers = torch.empty_like(x) if powers is None else powers
    y = powers.copy_(x).gather(1, classes)
    powers.scatter_(1, classes, LEFT_OUT)
    most = powers.amax(1, keepdim=True)
    powers.sub_(most).mul_(LOG2_E / tau)  # the greatest is 0 exactly
    e = torch.exp2(powers, out=scratch(x, number + 1) if out is None else out)
    total = e.sum(1, keepdim=True)
    log_total = total.log()
    return powers, e, total, log_total, y.sub_(most).div_(tau).sub_(log_total)
