"""Queries: detectors with a decoder, asked once more with queries that two models share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmkd_plugin.annotations import fits
from mmkd_plugin.building import check_keys
from mmkd_plugin.losses.numerics.drawing import uniform
from mmkd_plugin.taps.tap import map_tensors
from mmkd_plugin.words import short

#: The modules of a detector of mmdet that a question runs: its memory comes out of the first.
ENCODER, DECODER, HEAD, LEARNT = 'encoder', 'decoder', 'bbox_head', 'query_embedding'


@dataclass(frozen=True)
class Queries:
    """The queries that both decoders of a term are asked with, a group at a time.

    Args:
        random (int): Number of random reference points, drawn anew in each iteration: the inverse
            sigmoid of each number is standard normal. 0 asks none. Defaults to 300.
        learnt (bool): Whether the queries that the teacher has learnt are asked too. Defaults to
            True.

    Examples:
        >>> Queries.from_config('distill.kd', dict(random=100)).random
        100
    """

    random: int = 300
    learnt: bool = True

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
        check_keys(here, config, ('random', 'learnt'))
        made = cls(**{key: value for key, value in config.items() if key != '_scope_'})
        if not fits(made.random, int) or made.random < 0:
            raise ValueError(f'{here}.random must be a whole number from 0 on, got {made.random!r}')
        if not isinstance(made.learnt, bool):
            raise ValueError(f'{here}.learnt must be True or False, got {short(made.learnt)}')
        if not made.random and not made.learnt:
            raise ValueError(f'{here}: random=0 and learnt=False leave no query')
        return made

    def groups(self, learnt: Tensor, seed: Tensor) -> list[Tensor]:
        """Returns the reference points of each group.

        Args:
            learnt (Tensor): Those of the teacher, ``(Q, 4)``, before the sigmoid.
            seed (Tensor): A whole number, int64 of shape ().

        Returns:
            list[Tensor]: ``(Q, 4)`` for each group, before the sigmoid.
        """
        drawn = uniform(seed, (self.random, learnt.shape[1])).to(learnt)
        normal = torch.special.ndtri(drawn.clamp(1e-6, 1 - 1e-6))
        return [x for x, wanted in ((learnt, self.learnt), (normal, self.random)) if wanted]

    def trial(self) -> list[Tensor]:
        """Returns three points for each group, to try models with."""
        points = torch.linspace(-1, 1, 12).view(3, 4)
        return [points] * (self.learnt + bool(self.random))

    def __str__(self) -> str:
        parts = ["the teacher's queries"] * self.learnt
        parts += [f'{self.random} random ones'] * bool(self.random)
        return ' and '.join(parts)


class Asked:
    """A decoder's last call in a forward, which can be repeated with other queries."""

    def __init__(self, model: nn.Module, owner: str) -> None:
        self._model, self._owner = model, owner
        self._given: dict[str, Any] | None = None

    def note(self, _: nn.Module, args: tuple, kwargs: dict) -> None:
        """Keeps what the decoder is called with."""
        self._given = dict(kwargs) if not args else None

    def answers(self, groups: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
        """Runs decoder and head once more for each group of queries.

        Args:
            groups (Sequence[Tensor]): Reference points ``(Q, 4)``, before the sigmoid.
            dtype (torch.dtype, optional): Type to compute in. Defaults to None: that of the call.

        Returns:
            list[Tensor]: For each group scores ``(layers, N, Q, C)``, then boxes
            ``(layers, N, Q, 4)``.

        Raises:
            ValueError: If the decoder does not take reference points.
        """
        given, found = self._given, []
        if given is None or getattr(given.get('query_pos'), 'shape', (0,))[-1] != 4:
            raise ValueError(
                f'{self._owner} has no decoder that takes reference points (N, Q, 4) as its '
                '`query_pos`, as that of DAB-DETR does'
            )
        if dtype is not None:
            given = map_tensors(given, lambda x: x.to(dtype) if x.is_floating_point() else x)
        memory = given['key']
        for points in groups:
            places = points.to(given['query_pos'].dtype).expand(len(memory), *points.shape)
            content = memory.new_zeros(*places.shape[:2], memory.shape[2])
            hidden, references = getattr(self._model, DECODER)(
                **{**given, 'query': content, 'query_pos': places}
            )
            found += getattr(self._model, HEAD).forward(hidden, references)
        return found


@contextmanager
def decoder_watched(model: nn.Module, owner: str) -> Iterator[Asked]:
    """Notes what the decoder of a model is called with while the block runs.

    Args:
        model (nn.Module): A detector of mmdet.
        owner (str): Name of the model in messages.

    Yields:
        Asked: The call; filled while the model runs.
    """
    asked = Asked(model, owner)
    decoder = getattr(model, DECODER, None)
    if not isinstance(decoder, nn.Module):
        yield asked
        return
    handle = decoder.register_forward_pre_hook(asked.note, with_kwargs=True)
    try:
        yield asked
    finally:
        handle.remove()


def learnt_queries(model: nn.Module, owner: str) -> Tensor:
    """Returns the reference points that a detector has learnt, ``(Q, 4)``.

    Args:
        model (nn.Module): A detector of mmdet.
        owner (str): Name of the model in messages.

    Raises:
        ValueError: If it has none.
    """
    weight = getattr(getattr(model, LEARNT, None), 'weight', None)
    if weight is None or weight.shape[-1] != 4:
        raise ValueError(f'{owner} has not learnt reference points (Q, 4), as DAB-DETR does')
    return weight.detach()
