"""Sums of soft labels (JDT), with their gradient by formula."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.divergence import probabilities
from mmkd_plugin.losses.numerics.pieces import scratch


def sums(s: Tensor, t: Tensor, kept: Tensor | None = None) -> Tensor:
    """See :func:`mmkd_plugin.losses.jaccard.sums`."""
    p, q = probabilities(s, 0, kept), probabilities(t, 1, kept)
    apart = torch.sub(p, q, out=scratch(p, 2)).abs_()
    return torch.stack([x.sum(2) for x in (p, q, apart)], 1)


def slope_of_sums(worth: Tensor, s: Tensor, t: Tensor, kept: Tensor | None = None) -> Tensor:
    """The gradient of ``(worth * sums(s, t, kept)).sum()`` with respect to the logits.

    Args:
        worth (Tensor): (N, 3, C), see :func:`sums`.
        s (Tensor): Logits of the student, (N, C, n).
        t (Tensor): Those of the teacher.
        kept (Tensor, optional): Which positions count, booleans (N, 1, n).

    Returns:
        Tensor: The shape of the logits.
    """
    p, q = probabilities(s, 0, kept), probabilities(t, 1, kept)
    of_p, _, of_apart = worth[..., None].unbind(1)
    g = torch.sub(p, q, out=q).sign_().mul_(of_apart).add_(of_p)
    return p.mul_(g.sub_(torch.mul(p, g, out=scratch(p, 2)).sum(1, keepdim=True)))
