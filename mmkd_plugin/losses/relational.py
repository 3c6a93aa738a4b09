"""Relational knowledge distillation (RKD): distances and angles between samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.losses.numerics import relational as fast
from mmkd_plugin.losses.numerics.checks import (
    check_shapes,
    loss_weights,
    one_of,
    true_or_false,
)
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.gathering import gathered, world_size
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.precision import common_type, full_precision, no_autocast
from mmkd_plugin.losses.numerics.vectors import unit_vectors
from mmkd_plugin.registry import MODELS

EMBEDS = ('flatten', 'pool', 'positions')


# --- formulas --------------------------------------------------------------------------------


# traced too: the compiled formula takes six times as long, and adds squares up in float32
@with_fast_form(fast.distance_gap, traced=True)
def distance_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth-L1 between the distances of all pairs of points, in units of their mean.

    Args:
        student (Tensor): (B, M, D_s): B sets of M points, each set compared by itself.
        teacher (Tensor): (B, M, D_t). It gets no gradient.

    Returns:
        Tensor: A scalar, the mean over all B*M^2 pairs.
    """
    with full_precision(student, teacher) as (s, t):
        s, t = relative_distances(s), relative_distances(t)
        return F.smooth_l1_loss(s, t, reduction='sum') / max(s.numel(), 1)


def relative_distances(points: Tensor) -> Tensor:
    """``||x_i - x_j||`` over the mean of those above 0: (B, M, D) to (B, M, M)."""
    distances = torch.cdist(points, points, compute_mode='donot_use_mm_for_euclid_dist')
    count = (distances > 0).sum((1, 2), keepdim=True).clamp(min=1)
    mean = distances.sum((1, 2), keepdim=True) / count
    return distances / mean.masked_fill(mean == 0, 1)


# traced too: the compiled formula holds the directions of all pairs, and takes eight times as long
@with_fast_form(fast.angle_gap, traced=True)
def angle_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth-L1 between the cosines of the angles in all triples of points.

    Args:
        student (Tensor): (B, M, D_s): B sets of M points, each set compared by itself.
        teacher (Tensor): (B, M, D_t). It gets no gradient.

    Returns:
        Tensor: A scalar, the mean over all B*M^3 triples.
    """
    with full_precision(student, teacher) as (s, t):
        s, t = angles(s), angles(t)
        return F.smooth_l1_loss(s, t, reduction='sum') / max(s.numel(), 1)


def angles(points: Tensor) -> Tensor:
    """``<e_ab, e_ac>`` with ``e_ab = (x_b - x_a) / ||x_b - x_a||``, 0 where points coincide.

    Args:
        points (Tensor): (B, M, D), in float32 or wider.

    Returns:
        Tensor: The cosines, (B, M, M, M), indexed by a, b, c.
    """
    directions = unit_vectors(points[:, None] - points[:, :, None], dim=3, eps=0)
    return directions @ directions.mT


# --- embeddings ------------------------------------------------------------------------------


def relational(
    compare: Callable[[Tensor, Tensor], Tensor],
    student: Tensor,
    teacher: Tensor,
    embed: str = 'flatten',
    num_positions: int = 64,
    gather: bool = False,
    normalize: bool = False,
) -> Tensor:
    """Compare the relations of the student's samples with those of the teacher's.

    Args:
        compare (Callable): :func:`distance_gap` or :func:`angle_gap`.
        student (Tensor): (N, D) or (N, C, H, W).
        teacher (Tensor): The same form. It gets no gradient.
        embed (str): See :class:`RKDDistanceLoss`. Defaults to ``'flatten'``.
        num_positions (int): See :class:`RKDDistanceLoss`. Defaults to 64.
        gather (bool): See :class:`RKDDistanceLoss`. Defaults to False.
        normalize (bool): See :class:`RKDDistanceLoss`. Defaults to False.

    Returns:
        Tensor: A scalar.
    """
    dense = embed == 'positions'
    check_shapes(
        student, teacher, ndims=(4,) if dense else (2, 4), same_channels=False, same_size=dense
    )
    pair, dtype = (student, teacher.detach()), common_type(student, teacher)
    with no_autocast(student.device.type):
        if dense:
            chosen = choose_positions(student, num_positions)
            s, t = (at_positions(x, chosen) for x in pair)
            s, t = (of_length_1(x, dtype) if normalize else x for x in (s, t))
            return compare(s.mT, t.mT)
        s, t = (embedding(x, embed, dtype) for x in pair)
        s, t = (of_length_1(x, dtype) if normalize else x for x in (s, t))
        if gather:
            s, t = (gathered(x.to(dtype)) for x in (s, t))
        return compare(s[None], t[None])


def embedding(x: Tensor, embed: str, dtype: torch.dtype) -> Tensor:
    """One vector per sample: (N, D) or (N, C, H, W) to (N, D), (N, C*H*W) or, in dtype, (N, C)."""
    return x.mean((2, 3), dtype=dtype) if embed == 'pool' and x.dim() == 4 else x.flatten(1)


def choose_positions(x: Tensor, count: int) -> Tensor | None:
    """Draw positions of (N, C, H, W) without replacement; None if there are no more than that."""
    total = x.shape[2:].numel()
    return torch.randperm(total, device=x.device)[:count] if total > count else None


def at_positions(x: Tensor, chosen: Tensor | None) -> Tensor:
    """The channel vectors at the chosen positions: (N, C, H, W) to (N, C, M)."""
    x = x.flatten(2)
    return x if chosen is None else x.index_select(2, chosen)


# traced too: the compiled formula keeps twice as much
@with_fast_form(fast.of_length_1, traced=True)
def of_length_1(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Vectors along dimension 1 divided by their L2 norms, 0 where these are at most 1e-12."""
    return unit_vectors(x.to(dtype), eps=1e-12)


# --- classes ---------------------------------------------------------------------------------


def check_options(embed: str, num_positions: int, gather: bool) -> None:
    """Refuse arguments that the two losses cannot work with.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range, or two do not go together.
    """
    one_of('embed', embed, EMBEDS)
    if type(num_positions) is not int:
        raise TypeError(f'num_positions must be an int, got {num_positions!r}')
    if num_positions < 3:
        raise ValueError(
            f'num_positions must be at least 3, got {num_positions}: fewer points have no '
            'relations that could differ'
        )
    if type(gather) is not bool:
        raise TypeError(f'gather must be a bool, got {gather!r}')
    if gather and embed == 'positions':
        raise ValueError(
            "gather=True must not be used with embed='positions', which compares the positions of "
            'each image by themselves; leave `gather` out'
        )


class RelationalLoss(nn.Module):
    """The common part of the two losses: their arguments, and the choice of the samples."""

    needs_same_channels: ClassVar[bool] = False
    auto_share: ClassVar[float] = 0.5  # more does harm: docs/results.md, the trials
    #: The formula: takes the points of student and teacher, and returns a scalar.
    gap: ClassVar[Callable[[Tensor, Tensor], Tensor]]

    def __init__(
        self,
        embed: str = 'flatten',
        num_positions: int = 64,
        gather: bool = False,
        normalize: bool = False,
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        check_options(embed, num_positions, gather)
        self.embed = embed
        self.num_positions = num_positions
        self.gather = gather
        self.normalize = true_or_false('normalize', normalize)
        self.loss_weight = loss_weights(loss_weight)

    @property
    def needs_same_size(self) -> bool:
        """Whether heights and widths must be equal: only if positions are compared."""
        return self.embed == 'positions'

    def teaches_nothing(
        self, channels: int, size: tuple[int, ...] | None = None, images: int | None = None
    ) -> str | None:
        """Why the loss is always 0, if it is: the relations of two points are always the same."""
        if self.embed == 'positions':
            few = size is not None and math.prod(size) < 3
            return 'fewer than 3 positions have no relations; tap larger maps' if few else None
        together = world_size() if self.gather else 1
        if images is None or images * together > 2:
            return None
        return (
            f'it compares 3 images or more with each other, and a process has {images}; '
            "take a larger batch, gather=True with several processes, or embed='positions'"
        )

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a tensor, or of a sequence of tensors."""
        compare = partial(
            relational,
            self.gap,
            embed=self.embed,
            num_positions=self.num_positions,
            gather=self.gather,
            normalize=self.normalize,
        )
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return (
            f'embed={self.embed}, num_positions={self.num_positions}, gather={self.gather}, '
            f'normalize={self.normalize}, loss_weight={self.loss_weight}'
        )


@MODELS.register_module()
class RKDDistanceLoss(RelationalLoss):
    """Match the distances between samples (RKD).

    ``d_ij = ||x_i - x_j||`` is divided by the mean of those above 0, in the student and in the
    teacher; the loss is the smooth-L1 (beta = 1) between the two, mean over all N^2 entries. Where
    samples coincide, the distance is 0 and gets no gradient.

    Two samples always have the relative distance 1: a batch of at least three is needed, on each
    process or, with ``gather=True``, on all of them together.

    Relational Knowledge Distillation, CVPR 2019.

    - paper: https://arxiv.org/abs/1904.05068
    - code: https://github.com/lenscloth/RKD

    Args:
        embed (str): What counts as a sample. ``'flatten'``: the images, each with all entries of
            its map; ``'pool'``: the images, each with the mean of its map over the positions;
            ``'positions'``: the positions of an image, each with its channels; the distances are
            normalised per image and the losses averaged over the images. Defaults to ``'flatten'``.
        num_positions (int): With ``embed='positions'``, how many positions are drawn in each
            forward: without replacement, the same ones in all images, in student and teacher. A
            map that has no more is taken as a whole. Defaults to 64.
        gather (bool): Whether to compare the samples of all processes of ``torch.distributed``
            instead of those of each by themselves. Without other processes, and without gradients,
            it changes nothing. Defaults to False.
        normalize (bool): Whether samples are first divided by their L2 norm, as other libraries
            offer. One no longer than 1e-12 becomes 0 and gets no gradient. Defaults to False.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors use
            1 with 2 on the angles for embeddings, 25 with 50 for classifiers. Defaults to 1.0.

    Shape:
        - student: (N, D) or (N, C, H, W), or a sequence of such tensors (the losses are added up);
          only maps with ``embed='positions'``.
        - teacher: the same form. Channel counts may differ, sizes too unless
          ``embed='positions'``.
        - output: a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range or, in ``forward``, if shapes do not fit.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import RKDDistanceLoss
        >>> criterion = RKDDistanceLoss(loss_weight=25)
        >>> student = torch.randn(16, 128, requires_grad=True)
        >>> teacher = torch.randn(16, 512)
        >>> loss = criterion(student, teacher)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([16, 128]))
    """

    gap = staticmethod(distance_gap)


@MODELS.register_module()
class RKDAngleLoss(RelationalLoss):
    """Match the angles between samples (RKD).

    With ``e_ab = (x_b - x_a) / ||x_b - x_a||``, 0 where samples coincide, the loss is the smooth-L1
    (beta = 1) between ``<e_ab, e_ac>`` of the student and of the teacher, mean over all N^3
    triples. Time goes with N^3, but memory with N^2.

    Three samples are the least that have an angle: a smaller batch costs nothing, see ``gather``.

    Relational Knowledge Distillation, CVPR 2019.

    - paper: https://arxiv.org/abs/1904.05068
    - code: https://github.com/lenscloth/RKD

    Args:
        embed (str): What counts as a sample. ``'flatten'``: the images, each with all entries of
            its map; ``'pool'``: the images, each with the mean of its map over the positions;
            ``'positions'``: the positions of an image, each with its channels; the losses are
            averaged over the images. Defaults to ``'flatten'``.
        num_positions (int): With ``embed='positions'``, how many positions are drawn in each
            forward, see :class:`RKDDistanceLoss`. Defaults to 64.
        gather (bool): Whether to compare the samples of all processes of ``torch.distributed``,
            see :class:`RKDDistanceLoss`. Defaults to False.
        normalize (bool): Whether samples are first divided by their L2 norm, see
            :class:`RKDDistanceLoss`. Defaults to False.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors use
            2 with 1 on the distances for embeddings, 50 with 25 for classifiers. Defaults to 1.0.

    Shape:
        - student: (N, D) or (N, C, H, W), or a sequence of such tensors (the losses are added up);
          only maps with ``embed='positions'``.
        - teacher: the same form. Channel counts may differ, sizes too unless
          ``embed='positions'``.
        - output: a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range or, in ``forward``, if shapes do not fit.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import RKDAngleLoss
        >>> criterion = RKDAngleLoss(loss_weight=50)
        >>> student = torch.randn(16, 128, requires_grad=True)
        >>> teacher = torch.randn(16, 512)
        >>> loss = criterion(student, teacher)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([16, 128]))
    """

    gap = staticmethod(angle_gap)
