"""Memory contrast (CIRKD): how similar each position is to rows kept from other images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmkd_plugin.losses.numerics import relations as fast
from mmkd_plugin.losses.numerics.autograd import keeping_gradients
from mmkd_plugin.losses.numerics.checks import (
    an_index,
    check_shapes,
    labels_at,
    loss_weights,
    one_of,
    temperature,
    whole_number,
)
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.drawing import fresh_seed, some_of, uniform
from mmkd_plugin.losses.numerics.gathering import world_size
from mmkd_plugin.losses.numerics.maps import Maps, Weight, as_pairs, sum_over_maps
from mmkd_plugin.losses.numerics.memory import ClassMemory
from mmkd_plugin.losses.numerics.own_modules import check_set_up, normalised, run
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.losses.numerics.vectors import unit_vectors
from mmkd_plugin.registry import MODELS

DRAWS = ('class', 'first')
SAMPLES = 4096, 1024  # pixels and regions that a position is compared with, of all classes
PIXELS = 16  # of a class that an image adds


@with_fast_form(fast.memory_contrast)
def memory_contrast(
    student: Tensor, teacher: Tensor, memories: Sequence[Tensor], kept: Tensor, tau: float
) -> Tensor:
    """``mean over positions of KL(softmax(t m / tau) || softmax(s m / tau))`` over rows m, summed.

    Args:
        student (Tensor): Vectors of the positions, (N, C, n); their directions s count.
        teacher (Tensor): The same shape, with directions t. They get no gradient.
        memories (Sequence[Tensor]): Unit vectors m, (M, C). The means for each are added up.
        kept (Tensor): Which positions count, booleans (N, n).
        tau (float): Temperature.

    Returns:
        Tensor: A scalar, 0 where no position counts.
    """
    with full_precision(student, teacher) as (s, t):
        s, t = (unit_vectors(x).mT for x in (s, t))
        weight, parts = kept.to(s.dtype) / kept.sum().clamp(min=1), []
        for rows in memories:
            log_s, log_t = ((x @ rows.to(s.dtype).mT / tau).log_softmax(2) for x in (s, t))
            parts.append(((log_t.exp() * (log_t - log_s)).sum(2) * weight).sum())
        return sum(parts[1:], start=parts[0])


def region_means(x: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The mean of the vectors of each class in each image, at unit length.

    Args:
        x (Tensor): (N, C, n).
        labels (Tensor): (N, n), ``classes`` where a position is ignored.
        classes (int): How many classes there are.

    Returns:
        tuple[Tensor, Tensor]: The means of all classes, (N * classes, C), image by image, and their
        classes, (N * classes,): ``classes`` where the image has none of it.
    """
    sums = x.new_zeros(len(x), classes + 1, x.shape[1])
    sums.scatter_add_(1, labels[..., None].expand(-1, -1, x.shape[1]), x.mT)
    counts = x.new_zeros(len(x), classes + 1).scatter_add_(1, labels, torch.ones_like(x[:, 0]))
    number = torch.arange(classes, device=x.device)
    found = torch.where(counts[:, :classes] > 0, number, classes)
    return unit_vectors(sums[:, :classes].flatten(0, 1)), found.flatten()


def drawn_pixels(
    x: Tensor, labels: Tensor, classes: int, seed: Tensor, draw: str = 'class'
) -> tuple[Tensor, Tensor]:
    """Up to 16 random positions of each class in each image.

    Args:
        x (Tensor): (N, C, n).
        labels (Tensor): (N, n), ``classes`` where a position is ignored.
        classes (int): How many classes there are.
        seed (Tensor): Decides which.
        draw (str): See :class:`MemoryContrastLoss`. Defaults to ``'class'``.

    Returns:
        tuple[Tensor, Tensor]: 16 vectors for each class and image, (m, C), image by image, and
        their classes, (m,): ``classes`` where the image has no more positions of it.
    """
    # in float64, so that a class and a number below 1 keep all digits
    keys = labels.double() + uniform(seed, labels.shape, stream=2)
    order = keys.argsort(1)
    counts = torch.zeros_like(labels[:, :1]).repeat(1, classes + 1)
    counts.scatter_add_(1, labels, torch.ones_like(labels))
    starts = counts.cumsum(1) - counts
    rank = torch.arange(PIXELS, device=x.device)
    there = rank < counts[:, :classes, None]
    places = (starts[:, :classes, None] + rank).clamp(max=labels.shape[1] - 1).flatten(1)
    positions = order.gather(1, places)
    if draw == 'first':  # the order within the class, read as a position of the map
        within = labels.argsort(dim=1, stable=True).argsort(1) - starts.gather(1, labels)
        positions = within.gather(1, positions)
    found = torch.where(there, torch.arange(classes, device=x.device)[:, None], classes)
    vectors = x.gather(2, positions[:, None].expand(-1, x.shape[1], -1))
    return vectors.mT.flatten(0, 1), found.flatten()


class Projector(nn.Sequential):
    """1×1 convolution, batch norm (over all GPUs), ReLU, 1×1 convolution, without biases.

    Args:
        in_channels (int): Channels of the student's map.
        out_channels (int): Channels of the teacher's map.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        # on a CPU there is no SyncBatchNorm, and DDP refuses one
        on_gpus = world_size() > 1 and dist.get_backend() == 'nccl'
        norm = nn.SyncBatchNorm if on_gpus else nn.BatchNorm2d
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            norm(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the projected map, (N, out_channels, H, W)."""
        first, norm, relu, second = self
        return second(relu(normalised(norm, first(x))))


@MODELS.register_module()
class MemoryContrastLoss(nn.Module):
    """Match how similar each position is to pixels and regions of other images (CIRKD).

    A projector of the loss converts the student's map. Each position, as a unit vector, is compared
    with rows of two memories for each class: pixels of the teacher, and means of its regions. The
    loss is the divergence of the softmax of the similarities by ``tau``, a mean over the positions
    with a label, of the pixels plus that of the regions.

    Cross-Image Relational Knowledge Distillation for Semantic Segmentation, CVPR 2022 (its
    memory-based part).

    - paper: https://arxiv.org/abs/2204.06986
    - code: https://github.com/winycg/CIRKD

    Args:
        classes (int): How many classes the labels have.
        pixels (int): Pixels in the memory of each class. Defaults to 20000.
        regions (int): Regions in the memory of each class. Defaults to 2000.
        tau (float): Temperature. Defaults to 0.1.
        draw (str): Which positions become pixels of a class in the memory: ``'class'``, random ones
            of the class; ``'first'``, what the authors' code takes: the number of a position within
            its class, read as a position of the map, which mostly has another class. Defaults to
            ``'class'``.
        ignore_index (int): Label of the positions to ignore. Labels that are no class are ignored
            too. Defaults to 255.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors use
            0.1. Defaults to 1.0.

    Shape:
        - student: (N, C_s, H, W), or a sequence of such maps (the losses are added up).
        - teacher: (N, C_t, H, W); channel counts may differ.
        - labels: (N, h, w), integers; resized by nearest to each map of another size.
        - seed: int64 of shape (), which decides what is drawn; None draws one.
        - output: a scalar.

    Raises:
        TypeError: If an argument or, in ``forward``, the labels have the wrong type.
        ValueError: If an argument is out of range or, in ``forward``, if shapes do not fit or
            ``setup`` was not called.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import MemoryContrastLoss
        >>> criterion = MemoryContrastLoss(classes=5, pixels=100, regions=50, loss_weight=0.1)
        >>> criterion.setup([16], [32])
        >>> student = torch.randn(2, 16, 8, 8, requires_grad=True)
        >>> labels = torch.randint(0, 5, (2, 32, 32))
        >>> loss = criterion(student, torch.randn(2, 32, 8, 8), labels)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([2, 16, 8, 8]))
    """

    needs: ClassVar[tuple[str, ...]] = ('labels', 'seed')
    needs_same_channels: ClassVar[bool] = False
    needs_same_size: ClassVar[bool] = True

    def __init__(
        self,
        classes: int,
        pixels: int = 20000,
        regions: int = 2000,
        tau: float = 0.1,
        draw: Literal['class', 'first'] = 'class',
        ignore_index: int = 255,
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__()
        for name, value in dict(classes=classes, pixels=pixels, regions=regions).items():
            whole_number(name, value)
        self.classes, self.pixels, self.regions = classes, pixels, regions
        self.tau = temperature('tau', tau)
        self.draw = one_of('draw', draw, DRAWS)
        self.ignore_index = an_index('ignore_index', ignore_index)
        self.loss_weight = loss_weights(loss_weight)
        self.projectors, self.memories = nn.ModuleList(), nn.ModuleList()

    def setup(self, student_channels: list[int], teacher_channels: list[int]) -> None:
        """Builds the projector and the memories of each map.

        Args:
            student_channels (list[int]): Channels of the student's maps, behind their connectors.
            teacher_channels (list[int]): Channels of the teacher's maps.
        """
        self.projectors = nn.ModuleList(map(Projector, student_channels, teacher_channels))
        self.memories = nn.ModuleList(
            nn.ModuleList(
                ClassMemory(self.classes, size, c, seed)
                for seed, size in enumerate((self.pixels, self.regions))
            )
            for c in teacher_channels
        )

    def forward(
        self, student: Maps, teacher: Maps, labels: Tensor, seed: Tensor | None = None
    ) -> Tensor:
        """Return the weighted loss of a map, or of a sequence of maps.

        In training, the teacher's positions enter the memories first.
        """
        students, teachers = as_pairs(student, teacher)
        check_set_up(self.projectors, students)
        seed = fresh_seed(students[0].device) if seed is None else seed

        def compare(
            s: Tensor, t: Tensor, projector: nn.Module, memories: nn.ModuleList, number: int
        ) -> Tensor:
            check_shapes(s, t, same_channels=False)
            found = labels_at(s, labels).flatten(1)
            outside = (found < 0) | (found >= self.classes) | (found == self.ignore_index)
            found = found.masked_fill(outside, self.classes)
            t = t.flatten(2)
            if self.training:
                self._remember(t, found, memories, seed + number)
            rows = [
                self._sample(memory, kind, seed + number) for kind, memory in enumerate(memories)
            ]

            def compute(s: Tensor) -> Tensor:
                return memory_contrast(run(projector, s).flatten(2), t, rows, ~outside, self.tau)

            return keeping_gradients(compute, s, weights=projector.parameters())

        numbers = range(len(students))
        others = self.projectors, self.memories, numbers
        return sum_over_maps(compare, students, teachers, self.loss_weight, *others)

    def _remember(self, t: Tensor, labels: Tensor, memories: nn.ModuleList, seed: Tensor) -> None:
        pixels, regions = memories
        with torch.no_grad(), full_precision(t, t) as (t, _):
            t = unit_vectors(t)
            regions.push(*region_means(t, labels, self.classes))
            pixels.push(*drawn_pixels(t, labels, self.classes, seed, self.draw))

    def _sample(self, memory: ClassMemory, kind: int, seed: Tensor) -> Tensor:
        """Rows of one memory: the same places of each class."""
        places = some_of(seed, memory.rows.shape[1], SAMPLES[kind] // self.classes + 1, kind)
        return memory.rows[:, places].flatten(0, 1)

    def extra_repr(self) -> str:
        names = ('classes', 'pixels', 'regions', 'tau', 'draw', 'ignore_index', 'loss_weight')
        return ', '.join(f'{name}={getattr(self, name)}' for name in names)
