"""Sums of soft labels (JDT), with their gradient by formula."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.divergence import probabilities
from mmkd_plugin.losses.numerics.pieces import scratch

#: What the gradient needs of a piece: p, and the sign of p - q.
Held = tuple[Tensor, Tensor]


def sums(
    s: Tensor, t: Tensor, kept: Tensor | None = None, held: Tensor | None = None
) -> Tensor | tuple[Tensor, Held]:
    """See :func:`mmkd_plugin.losses.jaccard.sums`; with ``held`` also what is left there."""
    p, q = probabilities(s, 0, kept, out=held), probabilities(t, 1, kept)
    of_p, of_q = p.sum(2), q.sum(2)
    apart = torch.sub(p, q, out=q)
    sign = None if held is None else torch.sign(apart, out=scratch(p, 2)).to(torch.int8)
    found = torch.stack([of_p, of_q, apart.abs_().sum(2)], 1)
    return found if held is None else (found, (p, sign))


def slope_of_sums(
    worth: Tensor, s: Tensor, t: Tensor, kept: Tensor | None = None, held: Held | None = None
) -> Tensor:
    """The gradient of ``(worth * sums(s, t, kept)).sum()`` with respect to the logits.

    Args:
        worth (Tensor): (N, 3, C), see :func:`sums`.
        s (Tensor): Logits of the student, (N, C, n).
        t (Tensor): Those of the teacher.
        kept (Tensor, optional): Which positions count, booleans (N, 1, n).
        held (tuple[Tensor, Tensor], optional): What :func:`sums` left; its p becomes the gradient.

    Returns:
        Tensor: The shape of the logits.
    """
    if held is None:
        p, q = probabilities(s, 0, kept), probabilities(t, 1, kept)
        held = p, torch.sub(p, q, out=q).sign_()
    (p, sign), (of_p, _, of_apart) = held, worth[..., None].unbind(1)
    g = torch.mul(sign, of_apart, out=scratch(p, 1)).add_(of_p)
    return p.mul_(g.sub_(torch.mul(p, g, out=scratch(p, 2)).sum(1, keepdim=True)))
