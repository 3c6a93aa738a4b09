"""Memories: rows that a loss keeps from one iteration to the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.numerics.gathering import Gather, world_size
from mmkd_plugin.losses.numerics.vectors import unit_vectors


class ClassMemory(nn.Module):
    """A ring of unit vectors for each class, the same in all processes.

    It is full from the start, of random unit vectors. Each new row takes the place of the oldest
    of its class. The state lies in buffers, so that a checkpoint has it beside the student.

    Args:
        classes (int): How many classes there are.
        size (int): Rows of each class.
        channels (int): Length of a row.
        seed (int): Of the first rows: all processes need the same. Defaults to 0.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses.numerics.memory import ClassMemory
        >>> memory = ClassMemory(3, 10, 4)
        >>> memory.push(torch.ones(2, 4), torch.tensor([0, 2]))
        >>> memory.next.tolist(), memory.rows[2, 0].tolist()
        ([1, 0, 1], [1.0, 1.0, 1.0, 1.0])
    """

    def __init__(self, classes: int, size: int, channels: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(classes, size, channels, generator=generator)
        self.register_buffer('rows', unit_vectors(rows, dim=2))
        self.register_buffer('next', torch.zeros(classes, dtype=torch.int64))

    @property
    def nbytes(self) -> int:
        """Bytes that it takes, in each process and in each checkpoint."""
        return sum(x.numel() * x.element_size() for x in self.buffers())

    @torch.no_grad()
    def push(self, rows: Tensor, classes: Tensor) -> None:
        """Takes new rows of this process, and those of all others.

        Nothing here waits for the device: which rows are kept is known there alone.

        Args:
            rows (Tensor): (n, channels). n may differ between processes.
            classes (Tensor): The class of each, (n,). A row of another class is left out.
        """
        if world_size() > 1:
            rows, classes = Gather.apply(rows), Gather.apply(classes[:, None])[:, 0]
        if not len(rows):
            return
        number, size, channels = self.rows.shape
        classes = classes.masked_fill((classes < 0) | (classes >= number), number)
        count = self.next.new_zeros(number + 1).scatter_add_(0, classes, torch.ones_like(classes))
        classes, order = classes.sort(stable=True)
        place = torch.arange(len(classes), device=rows.device)
        place -= (count.cumsum(0) - count)[classes]  # in the order of its class
        # more rows than fit: the last ones stay
        last = (place >= count[classes] - size) & (classes < number)
        known = classes.clamp(max=number - 1)
        slots = known * size + (self.next[known] + place) % size
        # a row that is left out is written as the first one that is not, or changes nothing
        flat, rows = self.rows.view(-1, channels), rows[order].to(self.rows.dtype)
        first, some = last.int().argmax(0, keepdim=True), last.any()
        slots = torch.where(last, slots, torch.where(some, slots[first], 0))
        instead = torch.where(some, rows[first], flat[0])
        flat.index_copy_(0, slots, torch.where(last[:, None], rows, instead))
        self.next.copy_((self.next + count[:number]) % size)
