"""Forms of a loss that differ from the formula in its file, on purpose: what others run."""

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
