"""Cross-image relations of positions (CIRKD, its mini-batch part)."""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from mmkd_plugin.losses.numerics import relations as fast
from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights, temperature
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.pooling import average_pool
from mmkd_plugin.losses.numerics.precision import full_precision, no_autocast
from mmkd_plugin.losses.numerics.vectors import unit_vectors
from mmkd_plugin.registry import MODELS


def cross_image(
    student: Tensor, teacher: Tensor, tau: float = 0.1, pool: int | None = None
) -> Tensor:
    """The mean of :func:`row_gap` over all pairs of images, after pooling.

    Args:
        student (Tensor): Map of the student, (N, C_s, H, W).
        teacher (Tensor): Map of the teacher, (N, C_t, H, W). It gets no gradient.
        tau (float): Temperature of the softmax. Defaults to 0.1.
        pool (int, optional): See :class:`CrossImageLoss`. Defaults to None.

    Returns:
        Tensor: A scalar.
    """
    check_shapes(student, teacher, same_channels=False)
    pair = (student, teacher.detach())
    if pool is not None and pool > 1:
        with no_autocast(student.device.type):
            pair = (average_pool(x if x.dtype.itemsize > 2 else x.float(), pool) for x in pair)
    return row_gap(*(x.flatten(2) for x in pair), tau, across=True)


def _row_gap(student: Tensor, teacher: Tensor, tau: float, across: bool) -> Tensor:
    images, _, n = student.shape
    count = max(images * n * (images if across else 1), 1)
    compare = partial(fast.row_divergence, tau=tau, columns=n, count=count)
    return fast.over_rows(student, teacher, compare, across)


@with_fast_form(_row_gap)
def row_gap(student: Tensor, teacher: Tensor, tau: float, across: bool) -> Tensor:
    """Mean KL of the softmaxed rows of ``x_i x_j^T / tau``, of vectors of length 1.

    Args:
        student (Tensor): n vectors of each image, (N, C_s, n).
        teacher (Tensor): (N, C_t, n). It gets no gradient.
        tau (float): Temperature of the softmax over the n vectors of image j.
        across (bool): Whether each image i is compared with each image j, or with itself alone.

    Returns:
        Tensor: A scalar, the mean over the n rows and the pairs of images.
    """
    with full_precision(student, teacher) as pair:
        logs = []
        for x in (unit_vectors(x, eps=fast.EPS) for x in pair):
            rows = x.mT[:, None] if across else x.mT
            logs.append((rows @ (x[None] if across else x) / tau).log_softmax(-1))
        log_s, log_t = logs
        count = log_s.shape[:-1].numel()
        return (log_t.exp() * (log_t - log_s)).sum() / max(count, 1)


@MODELS.register_module()
class CrossImageLoss(nn.Module):
    """Match how similar the positions of an image are to those of each image of the batch (CIRKD).

    With the channel vectors of all n positions brought to unit length, image i and image j have an
    n x n matrix of similarities; the loss is the mean over the rows and all N^2 pairs of images of
    ``KL`` between the softmaxes of ``t_i t_j^T / tau`` and ``s_i s_j^T / tau`` along j. There is no
    factor ``tau^2``. Rows are taken a few at a time, so memory goes with the maps and not with n^2
    (under torch.compile, all at once). A vector no longer than 1e-12 counts as 0, and gets no
    gradient.

    Cross-Image Relational Knowledge Distillation for Semantic Segmentation, CVPR 2022 (its
    mini-batch part).

    - paper: https://arxiv.org/abs/2204.06986
    - code: https://github.com/winycg/CIRKD

    Args:
        tau (float): Temperature of the softmax. Defaults to 0.1.
        pool (int, optional): Kernel and stride of an average-pooling before it (ceil mode). The
            authors' code pools by 4 where H and W are at least 256. Defaults to None, no pooling.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors use
            1 on the last map before the classifier. Defaults to 1.0.

    Shape:
        - student: (N, C_s, H, W), or a sequence of such maps (the losses are added up).
        - teacher: (N, C_t, H, W); channel counts may differ.
        - output: a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range or, in ``forward``, if shapes do not fit.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import CrossImageLoss
        >>> criterion = CrossImageLoss()
        >>> student = torch.randn(2, 64, 8, 16, requires_grad=True)
        >>> teacher = torch.randn(2, 256, 8, 16)
        >>> loss = criterion(student, teacher)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([2, 64, 8, 16]))
    """

    needs_same_channels: ClassVar[bool] = False
    needs_same_size: ClassVar[bool] = True

    def __init__(
        self, tau: float = 0.1, pool: int | None = None, loss_weight: Weight = 1.0
    ) -> None:
        super().__init__()
        self.tau = temperature('tau', tau)
        if pool is not None and type(pool) is not int:
            raise TypeError(f'pool must be an int or None, got {pool!r}')
        if pool is not None and pool < 1:
            raise ValueError(f'pool must be at least 1, got {pool}')
        self.pool = pool
        self.loss_weight = loss_weights(loss_weight)

    def teaches_nothing(
        self, channels: int, size: tuple[int, ...] | None = None, images: int | None = None
    ) -> str | None:
        """Why the loss is always 0, if it is: a softmax over a single position is always 1."""
        if size is None or math.prod(-(-side // (self.pool or 1)) for side in size) > 1:
            return None
        return 'the softmax over a single position is always 1; tap larger maps, or lower `pool`'

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        compare = partial(cross_image, tau=self.tau, pool=self.pool)
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return f'tau={self.tau}, pool={self.pool}, loss_weight={self.loss_weight}'
