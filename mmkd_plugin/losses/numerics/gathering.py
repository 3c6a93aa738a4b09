"""Rows of all processes of a distributed training."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """The number of processes of a distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


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
    return x if world_size() == 1 or not torch.is_grad_enabled() else Gather.apply(x)


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
