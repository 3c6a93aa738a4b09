"""The formulas of the losses as their papers state them: competitor and reference.

Each takes the student's and the teacher's maps (or a sequence of them) as the loss of the same
name does, and is written to be read: no trick, no fusion, no in-place operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Union

import torch
import torch.nn.functional as F
from torch import Tensor

#: One map or several; some formulas take several as one.
Maps = Union[Tensor, Sequence[Tensor]]


def over_maps(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Adds up what a formula gives for each pair of maps; labels and the like go to each."""

    def summed(student: Maps, teacher: Maps, *others: Tensor) -> Tensor:
        if isinstance(student, Tensor):
            return formula(student, teacher, *others)
        return sum(formula(s, t, *others) for s, t in zip(student, teacher))

    return summed


def softened(tau: float, dim: int) -> Callable[..., Tensor]:
    """``τ² · mean of KL`` with the softmax along ``dim``: CWD (flattened), PI and KD."""

    def formula(s: Tensor, t: Tensor) -> Tensor:
        count = s.numel() / s.shape[dim]
        log_s, p_t = F.log_softmax(s / tau, dim), F.softmax(t / tau, dim)
        return tau**2 * F.kl_div(log_s, p_t, reduction='sum') / count

    return over_maps(formula)


def channel_wise(tau: float) -> Callable[..., Tensor]:
    return over_maps(lambda s, t: softened(tau, 2)(s.flatten(2), t.flatten(2)))


@over_maps
def attention(s: Tensor, t: Tensor) -> Tensor:
    a, b = (F.normalize(x.pow(2).mean(1).flatten(1)) for x in (s, t))
    return (a - b).pow(2).mean()


@over_maps
def gradient_attention(s: Tensor, t: Tensor) -> Tensor:
    return (s - t).norm()


def pair_wise(pool: int | float | None) -> Callable[..., Tensor]:
    def similarities(x: Tensor) -> Tensor:
        if pool is not None:
            h, w = x.shape[2:]
            kernel = (int(pool * h), int(pool * w)) if isinstance(pool, float) else pool
            x = F.max_pool2d(x, kernel, kernel, ceil_mode=True)
        x = F.normalize(x.flatten(2), dim=1)
        return x.mT @ x

    return over_maps(lambda s, t: (similarities(t) - similarities(s)).pow(2).mean())


def intra_class_variation(classes: int) -> Callable[..., Tensor]:
    def cosines(x: Tensor, labels: Tensor) -> Tensor:
        centres = x
        for number in range(classes):
            mask = (labels == number).unsqueeze(1).to(x.dtype)
            centre = (x * mask).sum((2, 3), keepdim=True) / (mask.sum((2, 3), keepdim=True) + 1e-6)
            centres = centres * (1 - mask) + centre * mask
        return F.cosine_similarity(x, centres, dim=1)

    def formula(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        labels = F.interpolate(labels[:, None].float(), s.shape[2:])[:, 0]
        return (cosines(s, labels) - cosines(t, labels)).pow(2).mean()

    return over_maps(formula)


def _discrepancy(kernel: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def formula(s: Tensor, t: Tensor) -> Tensor:
        s, t = (F.normalize(x.flatten(2), dim=2) for x in (s, t))
        return kernel(t, t).mean() + kernel(s, s).mean() - 2 * kernel(s, t).mean()

    return over_maps(formula)


neuron_selectivity = _discrepancy(lambda a, b: (a @ b.mT).pow(2))
#: The same with all products of two channels held at once.
neuron_selectivity_broadcast = _discrepancy(
    lambda a, b: (a.unsqueeze(1) * b.unsqueeze(2)).sum(-1).pow(2)
)


def local_similarity(similarity: str) -> Callable[..., Tensor]:
    def neighbours(x: Tensor) -> list[Tensor]:
        h, w = x.shape[2:]
        middle = x[:, :, 1 : h - 1, 1 : w - 1]
        steps = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
        others = [x[:, :, i : i + h - 2, j : j + w - 2] for i, j in steps]
        if similarity == 'cosine':
            return torch.stack([F.cosine_similarity(middle, other, dim=1) for other in others])
        return sum((middle - other).pow(2).sum(1) for other in others)

    return over_maps(lambda s, t: (neighbours(s) - neighbours(t)).pow(2).mean())


@over_maps
def hint(s: Tensor, t: Tensor) -> Tensor:
    return (s - t).pow(2).mean()


@over_maps
def activation_boundary(s: Tensor, t: Tensor) -> Tensor:
    fires = (t > 0).to(s.dtype)
    missing = F.relu(1 - s).pow(2) * fires + F.relu(1 + s).pow(2) * (1 - fires)
    return missing.sum() / len(s)


@over_maps
def overhaul(s: Tensor, t: Tensor, margin: Tensor) -> Tensor:
    t = torch.max(t, margin.view(1, -1, 1, 1))
    counts = ((s > t) | (t > 0)).to(s.dtype)
    return ((s - t).pow(2) * counts).sum() / len(s)


@over_maps
def factor_transfer(s: Tensor, t: Tensor) -> Tensor:
    return (F.normalize(s.flatten(1)) - F.normalize(t.flatten(1))).abs().mean()


def fsp(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    def flow(first: Tensor, second: Tensor) -> Tensor:
        first = F.adaptive_max_pool2d(first, second.shape[2:])
        return first.flatten(2) @ second.flatten(2).mT / second.shape[2:].numel()

    pairs = zip(zip(student, student[1:]), zip(teacher, teacher[1:]))
    return sum((flow(*s) - flow(*t)).pow(2).mean() for s, t in pairs)


@over_maps
def rkd_distance(s: Tensor, t: Tensor) -> Tensor:
    def relative(x: Tensor) -> Tensor:
        x = x.flatten(1)
        lengths = x.pow(2).sum(1)
        squares = (lengths[:, None] + lengths[None, :] - 2 * x @ x.T).clamp(min=1e-12)
        distances = squares.sqrt() * (1 - torch.eye(len(x)).to(x))
        return distances / (distances.sum() / (len(x) * (len(x) - 1)))

    return F.smooth_l1_loss(relative(s), relative(t))


@over_maps
def rkd_angle(s: Tensor, t: Tensor) -> Tensor:
    def cosines(x: Tensor) -> Tensor:
        x = x.flatten(1)
        e = F.normalize(x[None, :] - x[:, None], dim=2)
        return e @ e.mT

    return F.smooth_l1_loss(cosines(s), cosines(t))


@over_maps
def explanation(s: Tensor, t: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(s.flatten(1), t.flatten(1))).mean()
