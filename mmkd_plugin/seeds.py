"""Seeds: random numbers that a resumed run draws again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
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


def seed_with(*key: int, devices: bool = True) -> None:
    """Seeds Python, numpy and torch.

    Args:
        *key (int): Numbers from 0. Other keys give unrelated random numbers.
        devices (bool): Whether accelerators are seeded too. Defaults to True.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.seeds import seed_with
        >>> seed_with(0, 1)
        >>> first = torch.rand(2)
        >>> seed_with(0, 1)
        >>> torch.equal(torch.rand(2), first)
        True
    """
    words = np.random.SeedSequence(key).generate_state(8)
    random.seed(words[:4].tobytes())
    np.random.seed(words[4:6])
    number = int(words[6]) << 32 | int(words[7])
    if devices:
        torch.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seeds Python, numpy and torch on the CPU for a block, and restores them at its end.

    Args:
        *key (int): As for :func:`seed_with`.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.seeds import seeded
        >>> with seeded(0, 1):
        ...     first = torch.rand(2)
        >>> with seeded(0, 1):
        ...     print(torch.equal(torch.rand(2), first))
        True
    """
    python, numpy, ours = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_with(*key, devices=False)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(ours)
