"""Forms of a loss that differ from the formula in its file, on purpose: what others run.

The files guard their formulas against constant channels, certain predictions and vectors of zeros.
Where that costs time, the paper's formula stands here without it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class ClassByClass:
    """Intra-class feature variation with a loop over the classes, as its authors' code has it.

    Args:
        classes (int): How many there are.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        labels = F.interpolate(labels[:, None].float(), student.shape[2:])
        return (self._cosines(student, labels) - self._cosines(teacher, labels)).pow(2).mean()

    def _cosines(self, x: Tensor, labels: Tensor) -> Tensor:
        centres = x
        for number in range(self.classes):
            mask = (labels == number).to(x.dtype)
            centre = (x * mask).sum((2, 3), keepdim=True) / (mask.sum((2, 3), keepdim=True) + 1e-6)
            centres = centres * (1 - mask) + centre * mask
        return F.cosine_similarity(x, centres, dim=1)


def neuron_selectivity_broadcast(student: Tensor, teacher: Tensor) -> Tensor:
    """Neuron selectivity with all products of two channels held at once."""
    s, t = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.unsqueeze(1) * b.unsqueeze(2)).sum(-1).pow(2)

    return kernel(t, t).mean() + kernel(s, s).mean() - 2 * kernel(s, t).mean()


def rkd_distance_by_products(student: Tensor, teacher: Tensor) -> Tensor:
    """Relational distances by ``|a|^2 + |b|^2 - 2ab`` in float32, as the authors' code has them.

    It is the fastest form, and loses the digits of points that are close to each other.
    """

    def relative(x: Tensor) -> Tensor:
        x = x.flatten(1)
        lengths = x.pow(2).sum(1)
        squares = (lengths[:, None] + lengths[None, :] - 2 * x @ x.T).clamp(min=1e-12)
        distances = squares.sqrt() * (1 - torch.eye(len(x)).to(x))
        return distances / (distances.sum() / (len(x) * (len(x) - 1)))

    return F.smooth_l1_loss(relative(student), relative(teacher))


def pearson(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared difference of standardised channels (PKD)."""

    def standard(x: Tensor) -> Tensor:
        x = x.transpose(0, 1).flatten(1)
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-6)

    return F.mse_loss(standard(student), standard(teacher)) / 2


def class_correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the mean correlation of rows, plus that of classes (DIST), at temperature 1."""
    s, t = (rows(x).softmax(1) for x in (student, teacher))

    def apart(a: Tensor, b: Tensor) -> Tensor:
        a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
        return 1 - ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)).mean()

    return apart(s, t) + apart(s.T, t.T)


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The labelled class and the others apart (DKD), with alpha 1, beta 8, tau 4."""
    s, t, y = with_labels(student, teacher, labels)
    s, t = s / 4, t / 4
    p_s, p_t = (x.softmax(1).gather(1, y) for x in (s, t))
    b_s, b_t = (torch.cat([p, 1 - p], 1) for p in (p_s, p_t))
    hidden = torch.zeros_like(s).scatter(1, y, 1000)
    of_target = F.kl_div(b_s.log(), b_t, reduction='batchmean')
    log_q, q = (s - hidden).log_softmax(1), (t - hidden).softmax(1)
    return 16 * (of_target + 8 * F.kl_div(log_q, q, reduction='batchmean'))


def normalized_target(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Soft target and normalised others (NKD), with gamma 1.5, tau 1."""
    s, t, y = with_labels(student, teacher, labels)
    of_target = -(t.softmax(1).gather(1, y) * s.log_softmax(1).gather(1, y)).mean()
    others = torch.ones_like(s, dtype=torch.bool).scatter(1, y, False)
    s, t = (x[others].view(len(x), -1) for x in (s, t))
    return of_target - 1.5 * (t.softmax(1) * s.log_softmax(1)).sum(1).mean()


def rows(x: Tensor) -> Tensor:
    """Logits of images (N, C) as they are; those of positions, (N, C, H, W), as (N*H*W, C)."""
    return x if x.dim() == 2 else x.permute(0, 2, 3, 1).flatten(0, 2)


def with_labels(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows that have a label, and it, (n, 1)."""
    if labels.dim() > 1:
        labels = F.interpolate(labels[:, None].float(), student.shape[2:])[:, 0].long().flatten()
    kept = labels != 255
    return rows(student)[kept], rows(teacher)[kept], labels[kept, None]


def cosine_hint(student: Tensor, teacher: Tensor, scope: str) -> Tensor:
    """Cosines of tokens or of flattened samples, and smooth-L1 (Theia)."""
    s, t = ((x if scope == 'token' else x.flatten(1)) for x in (student, teacher))
    return 0.9 * (1 - F.cosine_similarity(s, t, dim=1)).mean() + 0.1 * F.smooth_l1_loss(s, t)


def gram(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the cosines of all pairs of positions, the positive ones."""
    s, t = (F.normalize(x.flatten(2), dim=1) for x in (student, teacher))
    return F.mse_loss((s.mT @ s).relu(), (t.mT @ t).relu())


def relations(student: Tensor, teacher: Tensor, tau: float, across: bool) -> Tensor:
    """Divergence of the softmaxed cosines of positions, of one image or of each two images."""
    logs = []
    for x in (student, teacher):
        x = F.normalize(x.flatten(2), dim=1)
        pairs = x.mT[:, None] @ x[None] if across else x.mT @ x
        logs.append((pairs / tau).log_softmax(-1).flatten(0, -2))
    return F.kl_div(logs[0], logs[1], reduction='batchmean', log_target=True)
