"""A decoder's call, noted in a forward of its model and repeated with other queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmkd_plugin.queries.kinds import Group, Kind, check_takes, kind_of
from mmkd_plugin.queries.queries import Queries
from mmkd_plugin.taps.tap import map_tensors

#: The modules of a detector of mmdet that a question runs: its memory comes out of the first.
ENCODER, DECODER, HEAD = 'encoder', 'decoder', 'bbox_head'
#: Where a teacher is read, by which its forward ends: its decoder runs for the questions alone.
BEFORE_DECODER = [ENCODER, f'{DECODER}[0]@input']
#: The method of a detector that runs the decoder.
METHOD = 'forward_decoder'


class Asked:
    """A decoder's last call in a forward, which can be repeated with other queries.

    Args:
        model (nn.Module): A detector of mmdet.
        owner (str): Name of the model in messages.
    """

    def __init__(self, model: nn.Module, owner: str) -> None:
        self._model, self._owner = model, owner
        self.call: dict[str, Any] | None = None

    @property
    def kind(self) -> Kind:
        """The family of the model.

        Raises:
            ValueError: If its decoder cannot be asked, did not run, or has other scores.
        """
        kind = kind_of(self._model, self.call, self._owner)
        head = getattr(self._model, HEAD)
        if head.cls_out_channels != head.num_classes:
            raise ValueError(
                f'{self._owner} ({type(self._model).__name__}) has a score of the background '
                'beside those of its classes, and only independent scores are compared; take '
                'use_sigmoid=True in `loss_cls` of its head'
            )
        return kind

    @torch.no_grad()
    def groups(self, queries: Queries, seed: Tensor) -> list[Group]:
        """Returns the queries of a teacher: its own, and random ones.

        Args:
            queries (Queries): Which ones.
            seed (Tensor): A whole number, int64 of shape ().

        Raises:
            ValueError: If its decoder cannot be asked.
        """
        kind, found = self.kind, []
        if queries.learnt:
            found.append(kind.own())
        if queries.random:
            dtype = next(self._model.parameters()).dtype
            found.append(kind.made_of(queries.drawn(seed, kind.width).to(dtype)))
        return found

    def answers(self, groups: Sequence[Group], dtype: torch.dtype | None = None) -> list[Tensor]:
        """Runs decoder and head once more for each group of queries.

        Args:
            groups (Sequence[Group]): The queries.
            dtype (torch.dtype, optional): Type to compute in. Defaults to None: that of the call.

        Returns:
            list[Tensor]: For each group scores ``(layers, N, Q, C)``, then boxes
            ``(layers, N, Q, 4)``.

        Raises:
            ValueError: If the decoder cannot be asked, or takes other queries.
        """
        kind, found = self.kind, []
        if dtype is not None:
            kind.call = map_tensors(
                kind.call, lambda x: x.to(dtype) if x.is_floating_point() else x
            )
        for group in groups:
            check_takes(kind, group, self._owner)
            with kind.context(group):
                given = getattr(self._model, METHOD)(**{**kind.call, **kind.inputs(group)})
            found += getattr(self._model, HEAD).forward(**given)
        return found


class _Called(BaseException):
    """Ends a forward at the call of the decoder; ``except Exception`` does not catch it."""


def made_up(answers: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Returns numbers from 0 to 1 in the shapes of answers.

    A model that is not initialised yet may answer NaN, because parts of it are raw memory.

    Args:
        answers (Sequence[Tensor]): What a decoder answered.
        seed (int): Other seeds give other numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(x.shape, generator=generator) for x in answers]


def has_decoder(model: nn.Module) -> bool:
    """Whether a model has a decoder as detectors of mmdet have it, of whatever family."""
    return hasattr(model, METHOD)


@contextmanager
def decoder_watched(model: nn.Module, owner: str, stop: bool = False) -> Iterator[Asked]:
    """Notes what the decoder of a model is called with while the block runs.

    Args:
        model (nn.Module): A detector of mmdet.
        owner (str): Name of the model in messages.
        stop (bool): Whether the forward ends with the call. Defaults to False.

    Yields:
        Asked: The call; filled while the model runs.
    """
    asked = Asked(model, owner)
    if not has_decoder(model):
        yield asked
        return
    method = getattr(model, METHOD)

    def noted(*args: Any, **kwargs: Any) -> Any:
        asked.call = None if args else kwargs
        if stop:
            raise _Called
        return method(*args, **kwargs)

    setattr(model, METHOD, noted)  # it is no module, which a hook could watch
    try:
        yield asked
    except _Called:
        pass
    finally:
        delattr(model, METHOD)
