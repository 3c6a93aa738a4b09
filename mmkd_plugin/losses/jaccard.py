"""Jaccard metric losses on soft labels (JDT)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.numerics import jaccard as fast
from mmkd_plugin.losses.numerics.checks import (
    check_shapes,
    index_or_none,
    kept_positions,
    loss_weights,
    one_of,
    positive_number,
    true_or_false,
    weight,
)
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.one_pass import by_autograd, one_pass, through_sums
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.losses.numerics.resizing import at_image_size
from mmkd_plugin.losses.numerics.targets import is_target, target_classes
from mmkd_plugin.registry import MODELS

SCOPES = ('batch', 'image')
TARGETS = ('teacher', 'labels')

#: A logit so far below the others that its softmax is 0 in every type; float16 holds it.
IMPOSSIBLE = -1e4


def _in_pieces(
    student: Tensor,
    teacher: Tensor,
    alpha: float = 1.0,
    beta: float = 1.0,
    smooth: float = 1.0,
    scope: str = 'batch',
    labels: Tensor | None = None,
    ignore_index: int | None = None,
) -> Tensor:
    check_shapes(student, teacher)
    maps = [x.flatten(2) for x in (student, teacher)]
    if ignore_index is not None:
        maps.append(kept_positions(student, labels, ignore_index).flatten(1)[:, None])
    if not student.numel():
        return one_pass(by_autograd(lambda s, t: s.sum()), *maps[:2])

    def finish(sums: Tensor) -> Tensor:
        sums = sums.sum(0, keepdim=True) if scope == 'batch' else sums
        return ratio(*sums.unbind(1), alpha, beta, smooth)

    return through_sums(fast.sums, finish, *maps, slope_of_sums=fast.slope_of_sums)


@with_fast_form(_in_pieces)
def jaccard(
    student: Tensor,
    teacher: Tensor,
    alpha: float = 1.0,
    beta: float = 1.0,
    smooth: float = 1.0,
    scope: str = 'batch',
    labels: Tensor | None = None,
    ignore_index: int | None = None,
) -> Tensor:
    """``mean over the classes of 1 - (tp + d) / (tp + alpha * fp + beta * fn + d)``.

    Args:
        student (Tensor): Logits of the student, (N, C, H, W).
        teacher (Tensor): Logits of the teacher, same shape. They get no gradient.
        alpha (float): Factor on the false positives. Defaults to 1.0.
        beta (float): Factor on the false negatives. Defaults to 1.0.
        smooth (float): The ``d`` above. Defaults to 1.0.
        scope (str): See :class:`JaccardLoss`. Defaults to ``'batch'``.
        labels (Tensor, optional): Integers (N, h, w), used with ``ignore_index`` only.
        ignore_index (int, optional): Positions with this label leave all sums.

    Returns:
        Tensor: A scalar.
    """
    check_shapes(student, teacher)
    kept = None
    if ignore_index is not None:
        kept = kept_positions(student, labels, ignore_index)[:, None]
    with full_precision(student, teacher) as (s, t):
        of_samples = sums(s.flatten(2), t.flatten(2), None if kept is None else kept.flatten(2))
        of_all = of_samples.sum(0, keepdim=True) if scope == 'batch' else of_samples
        return ratio(*of_all.unbind(1), alpha, beta, smooth)


def sums(s: Tensor, t: Tensor, kept: Tensor | None = None) -> Tensor:
    """Sums of p, q and ``abs(p - q)`` over the positions, (N, 3, C), of logits (N, C, n)."""
    p, q = s.softmax(1), t.softmax(1)
    if kept is not None:
        p, q = (x.masked_fill(~kept, 0) for x in (p, q))
    return torch.stack([x.sum(2) for x in (p, q, (p - q).abs())], 1)


def ratio(
    of_p: Tensor, of_q: Tensor, apart: Tensor, alpha: float, beta: float, smooth: float
) -> Tensor:
    """The loss from the :func:`sums`, each (N, C) or (1, C)."""
    # tp + fp = sum p, tp + fn = sum q; with the distance, 1 - ratio keeps its digits
    tp = (of_p + of_q - apart) / 2
    missed = alpha * (of_p - tp) + beta * (of_q - tp)
    return (missed / (tp + missed + smooth)).sum() / max(missed.numel(), 1)


def labels_as_logits(
    student: Tensor, dtype: torch.dtype, labels: Tensor, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """Logits of a teacher that is certain of the labels.

    Args:
        student (Tensor): Logits of the student, (N, C, H, W); only their form is read.
        dtype (torch.dtype): Type of the logits.
        labels (Tensor): Integers, (N, h, w), resized by nearest.
        ignore_index (int, optional): Label that does not count, as those that are no class.

    Returns:
        tuple[Tensor, Tensor]: The logits, (N, C, H, W), and where the labels count: booleans,
        (N, H, W).
    """
    classes, kept = target_classes(student, labels, -1 if ignore_index is None else ignore_index)
    logits = torch.zeros_like(student, dtype=dtype, requires_grad=False)
    return logits.masked_fill_(~is_target(student, classes), IMPOSSIBLE), kept[:, 0]


@MODELS.register_module()
class JaccardLoss(nn.Module):
    """Match the classes by the metric itself, the intersection over union of soft labels (JDT).

    With ``p`` and ``q`` the softmaxes of student and teacher, each class has
    ``tp = (sum p + sum q - sum abs(p - q)) / 2``, ``fp = sum p - tp`` and ``fn = sum q - tp``; the
    loss is ``1 - (tp + smooth) / (tp + alpha * fp + beta * fn + smooth)``, mean over all classes.
    With ``target='labels'`` q is 1 for the class of the label and 0 for the others: the authors
    add this half to that of the teacher.

    Jaccard Metric Losses: Optimizing the Jaccard Index with Soft Labels, NeurIPS 2023.

    - paper: https://arxiv.org/abs/2302.05666
    - code: https://github.com/zifuwanggg/JDTLosses

    Args:
        alpha (float): Factor on the false positives. Defaults to 1.0.
        beta (float): Factor on the false negatives; 0.5 for both is the Dice loss. Defaults to 1.0.
        smooth (float): Added above and below, over 0; the authors' recipes have 1, their class
            1e-3. Defaults to 1.0.
        scope (str): Whether the sums of a class run over the ``'batch'`` of a process or over each
            ``'image'``. Defaults to ``'batch'``.
        ignore_index (int, optional): Label of the positions to leave out; ``forward`` then needs
            ``labels``. Defaults to None, every position counts.
        target (str): Whether q is of the ``'teacher'`` or of the ``'labels'``, which ``forward``
            then needs; those that are no class are left out too. Defaults to ``'teacher'``.
        upsample (bool): Whether logits are first resized to the size of the images, bilinearly, as
            the authors' are; ``forward`` then needs ``image_size``. Defaults to False.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors use
            half of 0.75 on each target, beside half of 0.25 on the cross-entropy with the labels
            and on the pixel-wise loss with ``tau=1``. Defaults to 1.0.

    Shape:
        - student: (N, C, H, W), or a sequence of such maps (the losses are added up).
        - teacher: the same shapes as the student; with ``target='labels'`` it is not read.
        - labels: (N, h, w), integers; resized by nearest to each map of another size.
        - image_size: height and width of the padded images.
        - output: a scalar. Maps with a single channel always cost 0.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range or, in ``forward``, if shapes differ, or labels or an
            image size that it needs are missing.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import JaccardLoss
        >>> criterion = JaccardLoss(loss_weight=0.375)
        >>> student = torch.randn(2, 19, 8, 16, requires_grad=True)
        >>> teacher = torch.randn(2, 19, 8, 16)
        >>> loss = criterion(student, teacher)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([2, 19, 8, 16]))
    """

    compares_probabilities: ClassVar[bool] = True

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        smooth: float = 1.0,
        scope: str = 'batch',
        ignore_index: int | None = None,
        target: str = 'teacher',
        upsample: bool = False,
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        self.alpha, self.beta = weight('alpha', alpha), weight('beta', beta)
        if not alpha and not beta:
            raise ValueError('alpha and beta are both 0: nothing is left of the loss')
        self.smooth = positive_number('smooth', smooth)
        self.scope = one_of('scope', scope, SCOPES)
        self.ignore_index = index_or_none('ignore_index', ignore_index)
        self.target = one_of('target', target, TARGETS)
        self.upsample = true_or_false('upsample', upsample)
        self.loss_weight = loss_weights(loss_weight)

    @property
    def needs(self) -> tuple[str, ...]:
        """What ``forward`` needs besides the maps: labels, if it compares or ignores some."""
        plain = self.ignore_index is None and self.target == 'teacher'
        labels = () if plain else ('labels',)
        return (*labels, 'image_size') if self.upsample else labels

    @property
    def needs_same_channels(self) -> bool:
        """Whether both models must have as many classes: not if the teacher is not read."""
        return self.target == 'teacher'

    @property
    def needs_same_size(self) -> bool:
        """Whether the maps of both models must have one size before they are upsampled."""
        return self.target == 'teacher' and not self.upsample

    def teaches_nothing(
        self, channels: int, size: tuple[int, ...] | None = None, images: int | None = None
    ) -> str | None:
        """Why the loss is always 0, if it is: a softmax over a single class is always 1."""
        return None if channels > 1 else 'the softmax over a single class is always 1'

    def forward(
        self,
        student: Maps,
        teacher: Maps,
        labels: Tensor | None = None,
        image_size: Sequence[int] | None = None,
    ) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        if self.upsample:
            student, teacher = at_image_size(student, teacher, image_size)
        compare = partial(
            jaccard, alpha=self.alpha, beta=self.beta, smooth=self.smooth, scope=self.scope
        )

        def with_teacher(student: Tensor, teacher: Tensor) -> Tensor:
            return compare(student, teacher, labels=labels, ignore_index=self.ignore_index)

        def with_labels(student: Tensor, teacher: Tensor) -> Tensor:
            check_shapes(student, teacher, same_channels=False, same_size=False)
            if labels is None:
                raise ValueError("target='labels' needs `labels`; give them")
            certain, kept = labels_as_logits(student, teacher.dtype, labels, self.ignore_index)
            return compare(student, certain, labels=kept.long(), ignore_index=0)

        one = with_teacher if self.target == 'teacher' else with_labels
        return sum_over_maps(one, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return (
            f'alpha={self.alpha}, beta={self.beta}, smooth={self.smooth}, scope={self.scope}, '
            f'ignore_index={self.ignore_index}, target={self.target}, upsample={self.upsample}, '
            f'loss_weight={self.loss_weight}'
        )
