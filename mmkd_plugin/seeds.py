"""Seeds: random numbers that a resumed run draws again."""

from __future__ import annotations

from hashlib import blake2b

import torch
from mmengine.dist import get_rank
from mmengine.logging import MessageHub
from torch import Tensor


def seed_of_iteration(term: str, device: torch.device) -> Tensor:
    """Returns a seed of this iteration: a function of the run's seed, the process and the term.

    A resumed run has the seeds of the one that never stopped, and nothing is saved for it.

    Args:
        term (str): Name of the term. Each has seeds of its own.
        device (torch.device): Where the seed should lie.

    Returns:
        Tensor: A whole number from 0, int64 of shape ().
    """
    run = MessageHub.get_current_instance().runtime_info
    key = (run.get('seed'), run.get('iter', 0), get_rank(), term)
    number = int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), 'big') >> 1
    return torch.full((), number, dtype=torch.int64, device=device)
