"""Relations of the tokens of an image, and of images to those seen before (LightlyTrain)."""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.cross_image import row_gap
from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights, temperature
from mmkd_plugin.losses.numerics.gathering import gathered
from mmkd_plugin.losses.numerics.maps import Maps, Weight, as_pairs, sum_over_maps
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.losses.numerics.vectors import unit_vectors
from mmkd_plugin.registry import MODELS


def token_relation(student: Tensor, teacher: Tensor, tau: float = 0.07) -> Tensor:
    """Mean KL of the softmaxed rows of ``x x^T / tau``, with the unit tokens x of an image.

    Args:
        student (Tensor): Map of the student, (N, C_s, H, W).
        teacher (Tensor): Map of the teacher, (N, C_t, H, W). It gets no gradient.
        tau (float): Temperature of the softmax. Defaults to 0.07.

    Returns:
        Tensor: A scalar, the mean over all N*H*W rows.
    """
    check_shapes(student, teacher, same_channels=False)
    return row_gap(student.flatten(2), teacher.flatten(2), tau, across=False)


def queue_gap(student: Tensor, teacher: Tensor, queue: Tensor, kept: Tensor, tau: float) -> Tensor:
    """Mean KL of the softmaxed similarities of each image to the vectors of a queue.

    Args:
        student (Tensor): Unit vectors of the student's images, (N, C).
        teacher (Tensor): Those of the teacher.
        queue (Tensor): Unit vectors of the teacher, (K, C).
        kept (Tensor): Which places of the queue are filled, booleans (K,).
        tau (float): Temperature of the softmax.

    Returns:
        Tensor: A scalar.
    """
    log_s, log_t = (
        (x @ queue.mT / tau).masked_fill(~kept, -1e30).log_softmax(1) for x in (student, teacher)
    )
    rows = (log_t.exp() * (log_t - log_s).masked_fill(~kept, 0)).sum(1)
    return rows.sum() / max(len(rows), 1)


class TeacherQueue(nn.Module):
    """The teacher's latest vectors, one an image: what is full is overwritten from the start.

    Args:
        size (int): How many vectors.
        channels (int): Their length.
    """

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.register_buffer('vectors', torch.zeros(size, channels))
        self.register_buffer('filled', torch.zeros(size, dtype=torch.bool))
        self.register_buffer('place', torch.zeros((), dtype=torch.int64))

    def with_batch(self, batch: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
        """The queue after a batch (N, C) has entered it, and which places are filled."""
        size = len(self.filled)
        batch = batch[-size:]
        places = (self.place + torch.arange(len(batch), device=batch.device)) % size
        vectors = self.vectors.to(batch.dtype).index_copy(0, places, batch)
        filled = self.filled.index_fill(0, places, True)
        if keep:
            self.vectors.copy_(vectors)
            self.filled.copy_(filled)
            self.place.copy_((self.place + len(batch)) % size)
        return vectors, filled


@MODELS.register_module()
class TokenRelationLoss(nn.Module):
    """Match how tokens relate to their image, and images to those seen before (LightlyTrain).

    The first part is, with the tokens x of an image (the channel vectors at its positions) brought
    to unit length, the mean over all rows of ``KL`` between the softmaxes of ``x x^T / tau`` of
    teacher and student. The second is the same with the mean of an image's tokens, brought to unit
    length, against a queue of the teacher's, which the batch enters first. Both have weight 1, and
    there is no factor ``tau^2``.

    The queue starts empty: only its filled part counts, where the original compares with zeros too.
    It is filled while gradients are taken, with the images of all processes, is no weight of the
    student, and comes back when a run is resumed. Rows of the first part are taken a few at a time,
    so memory goes with the maps (under torch.compile, all at once). A vector no longer than 1e-12
    counts as 0, and gets no gradient.

    LightlyTrain, 2025 (its third version of distillation, for DINOv3 teachers). The formula is
    restated here; no code of it is used.

    - paper: https://docs.lightly.ai/train
    - code: https://github.com/lightly-ai/lightly-train

    Args:
        tau (float): Temperature of the softmax. Defaults to 0.07.
        queue (int): Vectors in the queue, about a quarter to a half of the images and at most 8192;
            0 leaves the second part out. Defaults to 8192.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. Defaults to 1.0.

    Shape:
        - student: (N, C, H, W), or a sequence of such maps (the losses are added up).
        - teacher: the same shapes as the student; without a queue, channel counts may differ.
        - output: a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range or, in ``forward``, if shapes do not fit.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import TokenRelationLoss
        >>> criterion = TokenRelationLoss(queue=256)
        >>> student = torch.randn(2, 64, 8, 16, requires_grad=True)
        >>> teacher = torch.randn(2, 64, 8, 16)
        >>> loss = criterion(student, teacher)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([2, 64, 8, 16]))
    """

    needs_same_size: ClassVar[bool] = True
    auto_share: ClassVar[float] = 0.5  # more does harm: docs/results.md, the trials

    def __init__(self, tau: float = 0.07, queue: int = 8192, loss_weight: Weight = 1.0) -> None:
        super().__init__()
        self.tau = temperature('tau', tau)
        if type(queue) is not int:
            raise TypeError(f'queue must be an int, got {queue!r}')
        if queue < 0:
            raise ValueError(f'queue cannot be negative, got {queue}')
        self.queue = queue
        self.loss_weight = loss_weights(loss_weight)
        self.queues = nn.ModuleList()

    @property
    def needs_same_channels(self) -> bool:
        """Whether channel counts must be equal: the queue holds vectors of the teacher."""
        return self.queue > 0

    def setup(self, student_channels: list[int], teacher_channels: list[int]) -> None:
        """Make an empty queue for each map."""
        if self.queue:
            self.queues.extend(TeacherQueue(self.queue, channels) for channels in teacher_channels)

    def teaches_nothing(
        self, channels: int, size: tuple[int, ...] | None = None, images: int | None = None
    ) -> str | None:
        """Why the loss is always 0, if it is: a softmax over a single position is always 1."""
        if self.queue or size is None or math.prod(size) > 1:
            return None
        return 'the softmax over a single position is always 1; tap larger maps, or set `queue`'

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps."""
        if not self.queue:
            compare = partial(token_relation, tau=self.tau)
            return sum_over_maps(compare, student, teacher, self.loss_weight)
        pairs = [*zip(*as_pairs(student, teacher))]
        for pair in pairs:
            check_shapes(*pair)
        if not self.queues:  # used without a term
            self.setup([], [t.shape[1] for _, t in pairs])
            self.queues.to(pairs[0][1].device)
        return sum_over_maps(
            self._with_queue, student, teacher, self.loss_weight, list(self.queues)
        )

    def _with_queue(self, student: Tensor, teacher: Tensor, queue: TeacherQueue) -> Tensor:
        value = token_relation(student, teacher, self.tau)
        if not len(student):
            return value
        with full_precision(student, teacher) as pair:
            s, t = (unit_vectors(x.mean((2, 3)), eps=1e-12) for x in pair)
            learning = torch.is_grad_enabled() and student.requires_grad
            vectors, filled = queue.with_batch(gathered(t).detach(), keep=learning)
            return value + queue_gap(s, t, vectors, filled, self.tau)

    def extra_repr(self) -> str:
        return f'tau={self.tau}, queue={self.queue}, loss_weight={self.loss_weight}'
