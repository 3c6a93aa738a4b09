"""Relational knowledge distillation (RKD): distances and angles between samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.losses.numerics.autograd import refuse_second_derivative, with_gradient
from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights, one_of
from mmkd_plugin.losses.numerics.compiling import is_compiling
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.one_pass import empty_map
from mmkd_plugin.losses.numerics.pieces import Piece, each_piece
from mmkd_plugin.losses.numerics.precision import common_type, no_autocast, widest
from mmkd_plugin.registry import MODELS

EMBEDS = ('flatten', 'pool', 'positions')

# Points coincide where the square of their distance is within the rounding of what it is made of,
# sums of D products: this many times eps * sqrt(D). With D = 1e6, in float64, they do at a distance
# of 2e-6 of the size of the cloud.
ROUNDING = 16

#: How many triples of points to compare at once.
TRIPLES = 2**18


# --- formulas --------------------------------------------------------------------------------


def distance_gap(squares: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Smooth-L1 between the distances of all pairs of points, in units of their mean.

    With ``r = d / mean(d)`` and ``g`` the gradient with respect to ``r``, that with respect to a
    distance is ``(g - <g, r> / number of distances) / mean(d)``.

    Args:
        squares (Tensor): :func:`squared_distances` of the student, (B, M, M): B sets, each compared
            by itself.
        target (Tensor): Those of the teacher.

    Returns:
        tuple[Tensor, Tensor]: A scalar, the mean over all B*M^2 entries, and its gradient with
        respect to ``squares``.
    """
    distances = squares.sqrt()
    (relative, mean, number), count = relative_to_mean(distances), max(squares.numel(), 1)
    target = relative_to_mean(target.sqrt())[0]
    slope = (relative - target).clamp_(-1, 1)
    of_mean = (slope * relative).sum((1, 2), keepdim=True) / number
    # d = sqrt(d^2), and zeros get no gradient
    slope.sub_(of_mean).div_(distances.mul_(mean * (2 * count))).masked_fill_(squares == 0, 0)
    return smooth_l1(relative, target) / count, slope


def relative_to_mean(distances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distances over the mean of those above 0, this mean, and how many these are.

    Args:
        distances (Tensor): (B, M, M).

    Returns:
        tuple[Tensor, Tensor, Tensor]: (B, M, M); (B, 1, 1); (B, 1, 1). Where there is no distance
        above 0, the mean and the number are 1.
    """
    number = (distances != 0).sum((1, 2), keepdim=True).clamp(min=1)
    mean = distances.sum((1, 2), keepdim=True) / number
    mean = mean.masked_fill(mean == 0, 1)
    return distances / mean, mean, number


def angle_gap(squares: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Smooth-L1 between the cosines of the angles in all triples of points.

    The vertices are taken a few at a time, so that not all triples are held at once.

    With ``g`` the gradient with respect to ``cos = (ab^2 + ac^2 - bc^2) / (2 ab ac)``, that with
    respect to ``ab^2`` is ``g / (2 ab ac) - g cos / (2 ab^2)``, to ``ac^2`` likewise, and to
    ``bc^2`` it is ``-g / (2 ab ac)``.

    Args:
        squares (Tensor): :func:`squared_distances` of the student, (B, M, M): B sets, each compared
            by itself.
        target (Tensor): Those of the teacher.

    Returns:
        tuple[Tensor, Tensor]: A scalar, the mean over all B*M^3 entries, and its gradient with
        respect to ``squares``.
    """
    batch, points, _ = squares.shape
    count = max(batch * points**3, 1)
    inverse, value = inverse_distances(squares), squares.new_zeros(())
    gradient = torch.zeros_like(squares)
    for vertices in groups_of_vertices(batch, points):
        cosine, halves = cosines(squares, vertices)
        other, _ = cosines(target, vertices)
        value = value + smooth_l1(cosine, other)
        slope = (cosine - other).clamp_(-1, 1)
        along = (slope * cosine).sum(3) * inverse[:, vertices].square()
        across = slope.mul_(halves)
        # b and c may change places, which makes the gradients of both sides equal
        gradient[:, vertices] += 2 * across.sum(3) - along
        gradient -= across.sum(1)
    return value / count, gradient.div_(count)


def groups_of_vertices(batch: int, points: int) -> list[slice]:
    """So many points at once that the triples are few; all while torch.compile traces."""
    if is_compiling():
        return [slice(None)]
    step = max(TRIPLES // max(batch * points**2, 1), 1)
    return [slice(start, start + step) for start in range(0, points, step)]


def cosines(squares: Tensor, vertices: slice) -> tuple[Tensor, Tensor]:
    """``<e_ab, e_ac>`` with ``e_ab = (x_b - x_a) / ||x_b - x_a||``, 0 where points coincide.

    By the law of cosines ``<x_b - x_a, x_c - x_a> = (ab^2 + ac^2 - bc^2) / 2``, so nothing larger
    than the result is needed, whatever D is.

    Args:
        squares (Tensor): (B, M, M).
        vertices (slice): Which points are to be a.

    Returns:
        tuple[Tensor, Tensor]: The cosines and ``1 / (2 ab ac)``, (B, A, M, M), indexed by a, b, c.
    """
    ab, inverse = squares[:, vertices], inverse_distances(squares)[:, vertices]
    halves = (inverse / 2)[:, :, :, None] * inverse[:, :, None, :]
    inner = (ab[:, :, :, None] + ab[:, :, None, :]).sub_(squares[:, None])  # digits cancel here
    return inner.mul_(halves), halves


def inverse_distances(squares: Tensor) -> Tensor:
    """``1 / ||x_i - x_j||``, 0 where points coincide."""
    return squares.masked_fill(squares == 0, math.inf).rsqrt()


def smooth_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum over all entries, with beta = 1."""
    return F.smooth_l1_loss(student, teacher, reduction='sum')


class SquaredDistances(torch.autograd.Function):
    """``||x_i - x_j||^2`` for all pairs of points, (B, M, D) to (B, M, M) in float64.

    Flattened maps have millions of entries, so B*M*M*D must not be held, nor a wider copy of the
    points. The usual way out, ``|a|^2 + |b|^2 - 2*a*b``, loses the digits of float32 where points
    are close to each other. Here it runs in float64, with the origin amid the points, some
    coordinates after the others; the backward pass sums ``x_i - x_j`` in the same manner. Points
    that coincide have a distance of exactly 0.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return squared_distances(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        refuse_second_derivative()
        (x,) = ctx.saved_tensors
        weights = grad + grad.mT
        # sum over j of 2 * weights_ij * (x_i - x_j)
        sums, laplacian = weights.sum(2), weights.mul_(-2)
        laplacian.diagonal(dim1=1, dim2=2).add_(sums, alpha=2)
        gradient = empty_map(x, x.dtype)

        def work(piece: Piece) -> None:
            gradient[piece] = laplacian[piece[0]] @ centred(x[piece])

        each_piece(work, x, dim=2)
        return gradient


def squared_distances(x: Tensor) -> Tensor:
    """See :class:`SquaredDistances`."""

    def work(piece: Piece) -> tuple[slice, Tensor]:
        part = centred(x[piece])
        return piece[0], part @ part.mT

    products = x.new_zeros(len(x), x.shape[1], x.shape[1], dtype=widest(x))
    for samples, product in each_piece(work, x, dim=2):
        products[samples] += product
    squares = products.diagonal(dim1=1, dim2=2).clone()  # far apart in memory
    sums = squares[:, :, None] + squares[:, None, :]
    squares = torch.sub(sums, products, alpha=2)
    rounding = ROUNDING * torch.finfo(products.dtype).eps * x.shape[2] ** 0.5
    return squares.masked_fill_(squares <= sums.mul_(rounding), 0)


def centred(x: Tensor) -> Tensor:
    """The points in float64, with their mean at 0."""
    x = x.to(widest(x))
    return x - x.mean(1, keepdim=True)


# --- embeddings ------------------------------------------------------------------------------


def relational(
    compare: Callable[..., tuple[Tensor, Tensor]],
    student: Tensor,
    teacher: Tensor,
    embed: str = 'flatten',
    num_positions: int = 64,
    gather: bool = False,
) -> Tensor:
    """Compare the relations of the student's samples with those of the teacher's.

    Args:
        compare (Callable): :func:`distance_gap` or :func:`angle_gap`.
        student (Tensor): (N, D) or (N, C, H, W).
        teacher (Tensor): The same form. It gets no gradient.
        embed (str): See :class:`RKDDistanceLoss`. Default: ``'flatten'``.
        num_positions (int): See :class:`RKDDistanceLoss`. Default: 64.
        gather (bool): See :class:`RKDDistanceLoss`. Default: False.

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
            s, t = (points_of_positions(x, chosen) for x in pair)
        else:
            s, t = (embedding(x, embed, dtype)[None] for x in pair)
            if gather:
                s, t = (gathered(x[0].to(dtype))[None] for x in (s, t))
        squares, target = SquaredDistances.apply(s), squared_distances(t)
        return with_gradient(partial(compare, target=target), squares).to(dtype)


def embedding(x: Tensor, embed: str, dtype: torch.dtype) -> Tensor:
    """One vector per sample: (N, D) or (N, C, H, W) to (N, D), (N, C*H*W) or, in dtype, (N, C)."""
    return x.mean((2, 3), dtype=dtype) if embed == 'pool' and x.dim() == 4 else x.flatten(1)


def choose_positions(x: Tensor, count: int) -> Tensor | None:
    """Draw positions of (N, C, H, W) without replacement; None if there are no more than that."""
    total = x.shape[2:].numel()
    return torch.randperm(total, device=x.device)[:count] if total > count else None


def points_of_positions(x: Tensor, chosen: Tensor | None) -> Tensor:
    """The channel vectors at the chosen positions: (N, C, H, W) to (N, M, C)."""
    x = x.flatten(2)
    return (x if chosen is None else x.index_select(2, chosen)).mT


# --- samples of several processes ------------------------------------------------------------


def gathered(x: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks; those of this one keep the gradient.

    Without gradients (a dry forward, say), or without other processes, nothing is gathered.

    Args:
        x (Tensor): (N, D). N may differ between the processes.

    Returns:
        Tensor: (sum of N, D).

    Raises:
        ValueError: If D differs between the processes.
    """
    alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
    return x if alone or not torch.is_grad_enabled() else Gather.apply(x)


class Gather(torch.autograd.Function):
    """Gather rows from all processes.

    Every process then computes one and the same loss, and the gradients of all of them for the
    rows of one process would have to be added up there. They are equal, so multiplying by their
    number spares the exchange. Data-parallel training divides by it, as it averages gradients over
    the processes: what is left is the gradient of the loss over the whole batch.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        shape = torch.tensor(x.shape, device=x.device)
        shapes = [torch.empty_like(shape) for _ in range(dist.get_world_size())]
        dist.all_gather(shapes, shape)
        counts, widths = torch.stack(shapes).mT.tolist()
        if len(set(widths)) > 1:
            raise ValueError(
                f'gather=True: the embeddings of the processes have different lengths: {widths}; '
                "give all of them maps of one size, or set embed='pool'"
            )
        padded = x.new_zeros(max(counts), widths[0])
        padded[: len(x)] = x
        everyone = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(everyone, padded)
        rank = dist.get_rank()
        ctx.own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        ctx.processes = len(counts)
        return torch.cat([rows[:count] for rows, count in zip(everyone, counts)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad[ctx.own] * ctx.processes


# --- classes ---------------------------------------------------------------------------------


def check_options(embed: str, num_positions: int, gather: bool) -> None:
    """Refuse what the two losses cannot work with.

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


@MODELS.register_module()
class RKDDistanceLoss(nn.Module):
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
        embed (str): What the samples are. ``'flatten'``: the images, each with all entries of its
            map; ``'pool'``: the images, each with the mean of its map over the positions;
            ``'positions'``: the positions of an image, each with its channels; the distances are
            normalised per image and the losses averaged over the images. Default: ``'flatten'``.
        num_positions (int): With ``embed='positions'``, how many positions are drawn in each
            forward: without replacement, the same ones in all images, in student and teacher. A
            map that has no more is taken as a whole. Default: 64.
        gather (bool): Whether to compare the samples of all processes of ``torch.distributed``
            instead of those of each by themselves. Without other processes, and without gradients,
            it changes nothing. Default: False.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors use
            1 with 2 on the angles for embeddings, 25 with 50 for classifiers. Default: 1.0.

    Shape:
        - student: (N, D) or (N, C, H, W), or a sequence of such tensors (the losses are added up);
          only maps with ``embed='positions'``.
        - teacher: the same form. Channel counts may differ, sizes too unless
          ``embed='positions'``.
        - output: a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range or, in ``forward``, if shapes do not fit.

    Example:
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

    #: Whether student and teacher must have equally many channels. Read by the Distiller.
    needs_same_channels: ClassVar[bool] = False

    def __init__(
        self,
        embed: str = 'flatten',
        num_positions: int = 64,
        gather: bool = False,
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        check_options(embed, num_positions, gather)
        self.embed = embed
        self.num_positions = num_positions
        self.gather = gather
        self.loss_weight = loss_weights(loss_weight)

    @property
    def needs_same_size(self) -> bool:
        """Whether heights and widths must be equal: only if positions are compared."""
        return self.embed == 'positions'

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a tensor, or of a sequence of tensors."""
        compare = partial(
            relational,
            distance_gap,
            embed=self.embed,
            num_positions=self.num_positions,
            gather=self.gather,
        )
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return (
            f'embed={self.embed}, num_positions={self.num_positions}, gather={self.gather}, '
            f'loss_weight={self.loss_weight}'
        )


@MODELS.register_module()
class RKDAngleLoss(nn.Module):
    """Match the angles between samples (RKD).

    With ``e_ab = (x_b - x_a) / ||x_b - x_a||``, 0 where samples coincide, the loss is the smooth-L1
    (beta = 1) between ``<e_ab, e_ac>`` of the student and of the teacher, mean over all N^3
    triples. Time goes with N^3, but memory with N^2.

    Three samples are the least that have an angle: a smaller batch costs nothing, see ``gather``.

    Relational Knowledge Distillation, CVPR 2019.

    - paper: https://arxiv.org/abs/1904.05068
    - code: https://github.com/lenscloth/RKD

    Args:
        embed (str): What the samples are. ``'flatten'``: the images, each with all entries of its
            map; ``'pool'``: the images, each with the mean of its map over the positions;
            ``'positions'``: the positions of an image, each with its channels; the losses are
            averaged over the images. Default: ``'flatten'``.
        num_positions (int): With ``embed='positions'``, how many positions are drawn in each
            forward, see :class:`RKDDistanceLoss`. Default: 64.
        gather (bool): Whether to compare the samples of all processes of ``torch.distributed``,
            see :class:`RKDDistanceLoss`. Default: False.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors use
            2 with 1 on the distances for embeddings, 50 with 25 for classifiers. Default: 1.0.

    Shape:
        - student: (N, D) or (N, C, H, W), or a sequence of such tensors (the losses are added up);
          only maps with ``embed='positions'``.
        - teacher: the same form. Channel counts may differ, sizes too unless
          ``embed='positions'``.
        - output: a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range or, in ``forward``, if shapes do not fit.

    Example:
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

    #: Whether student and teacher must have equally many channels. Read by the Distiller.
    needs_same_channels: ClassVar[bool] = False

    def __init__(
        self,
        embed: str = 'flatten',
        num_positions: int = 64,
        gather: bool = False,
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        check_options(embed, num_positions, gather)
        self.embed = embed
        self.num_positions = num_positions
        self.gather = gather
        self.loss_weight = loss_weights(loss_weight)

    @property
    def needs_same_size(self) -> bool:
        """Whether heights and widths must be equal: only if positions are compared."""
        return self.embed == 'positions'

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a tensor, or of a sequence of tensors."""
        compare = partial(
            relational,
            angle_gap,
            embed=self.embed,
            num_positions=self.num_positions,
            gather=self.gather,
        )
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return (
            f'embed={self.embed}, num_positions={self.num_positions}, gather={self.gather}, '
            f'loss_weight={self.loss_weight}'
        )
