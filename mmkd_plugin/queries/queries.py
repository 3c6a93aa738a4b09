"""The queries that a term asks, as its config says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmkd_plugin.annotations import fits
from mmkd_plugin.building import check_keys
from mmkd_plugin.losses.numerics.drawing import uniform
from mmkd_plugin.words import short


@dataclass(frozen=True)
class Queries:
    """The queries that both decoders of a term are asked with, a group at a time.

    Args:
        random (int): Number of random queries, drawn anew in each iteration: standard normal
            numbers, which are boxes before the sigmoid, or embeddings. 0 asks none. Defaults to
            300.
        learnt (bool): Whether the teacher's own queries are asked too. Defaults to True.
        student (bool): Whether those of the student are. Defaults to False.

    Examples:
        >>> Queries.from_config('distill.kd', dict(random=100)).random
        100
    """

    random: int = 300
    learnt: bool = True
    student: bool = False

    @classmethod
    def from_config(cls, here: str, config: Any) -> Queries | None:
        """Reads the ``queries`` of a term.

        Args:
            here (str): Name of the term in messages.
            config (dict, optional): The arguments of this class.

        Returns:
            Queries | None: None if the term has none.

        Raises:
            ValueError: If it has another form, or asks nothing.
        """
        if config is None:
            return None
        here = f'{here}.queries'
        if not isinstance(config, dict):
            raise ValueError(f'{here}: expected dict(random=300, learnt=True), got {short(config)}')
        check_keys(here, config, ('random', 'learnt', 'student'))
        made = cls(**{key: value for key, value in config.items() if key != '_scope_'})
        if not fits(made.random, int) or made.random < 0:
            raise ValueError(f'{here}.random must be a whole number from 0 on, got {made.random!r}')
        for key in ('learnt', 'student'):
            value = getattr(made, key)
            if not isinstance(value, bool):
                raise ValueError(f'{here}.{key} must be True or False, got {short(value)}')
        if not (made.random or made.learnt or made.student):
            raise ValueError(f'{here}: random=0 and learnt=False leave no query')
        return made

    def drawn(self, seed: Tensor, width: int) -> Tensor:
        """Returns the numbers of the random queries.

        Args:
            seed (Tensor): A whole number, int64 of shape ().
            width (int): How many numbers make a query.

        Returns:
            Tensor: Standard normal numbers ``(random, width)``, float32.
        """
        numbers = uniform(seed, (self.random, width))
        return torch.special.ndtri(numbers.clamp(1e-6, 1 - 1e-6))

    def __str__(self) -> str:
        parts = ["the teacher's queries"] * self.learnt
        parts += [f'{self.random} random ones'] * bool(self.random)
        parts += ["the student's" if parts else "the student's queries"] * self.student
        *first, last = parts
        return f'{", ".join(first)} and {last}' if first else last
