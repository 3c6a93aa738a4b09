"""A decoder's call, noted in a forward of its model and repeated with other queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mmkd_plugin.queries import detectors, masks
from mmkd_plugin.queries.kinds import Group, Kind
from mmkd_plugin.queries.queries import Queries
from mmkd_plugin.taps import Tap
from mmkd_plugin.taps.tap import FOUND_BY, map_tensors

#: The files that know how models call their decoders.
FAMILIES = detectors, masks
#: The kinds of all families, in the order in which they are tried.
KINDS = tuple(kind for family in FAMILIES for kind in family.KINDS)

#: What plans call the part of a model that is asked.
DECODER = 'decoder'
#: The name of the place of what a decoder reads, whatever the modules of the model are called.
MEMORY = 'decoder_memory'
#: Where a teacher is read, by which its forward ends: its decoder runs for the questions alone.
BEFORE_DECODER = f'{MEMORY}@input'


class Asked:
    """A decoder's last call in a forward, which can be repeated with other queries.

    Args:
        model (nn.Module): The model.
        owner (str): Name of the model in messages.
    """

    def __init__(self, model: nn.Module, owner: str) -> None:
        self._model, self._owner = model, owner
        self.call: dict[str, Any] | None = None

    @property
    def kind(self) -> Kind:
        """The family of the model.

        Raises:
            ValueError: If its decoder cannot be asked, or did not run.
        """
        for kind in KINDS if self.call is not None else ():
            if kind.fits(self._model, self.call):
                return kind(self._model, self.call)
        raise ValueError(without_queries(self._model, self._owner))

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

    @torch.no_grad()
    def own(self) -> Group:
        """Returns the queries of the call itself, for the other model.

        Raises:
            ValueError: If its decoder cannot be asked.
        """
        return self.kind.own()

    def answers(
        self, groups: Sequence[Group], dtype: torch.dtype | None = None, whose: str = 'teacher'
    ) -> list[Tensor]:
        """Runs decoder and head once more for each group of queries.

        Args:
            groups (Sequence[Group]): The queries.
            dtype (torch.dtype, optional): Type to compute in. Defaults to None: that of the call.
            whose (str): The model that they come from, for messages. Defaults to ``'teacher'``.

        Returns:
            list[Tensor]: For each group scores ``(layers, N, Q, C)``, then boxes
            ``(layers, N, Q, 4)`` or masks ``(layers, N, Q, H, W)``.

        Raises:
            ValueError: If the decoder cannot be asked, or takes other queries.
        """
        kind, found = self.kind, []
        if dtype is not None:
            kind.call = map_tensors(
                kind.call, lambda x: x.to(dtype) if x.is_floating_point() else x
            )
        for group in groups:
            check_takes(kind, group, self._owner, whose)
            found += kind.ask(group)
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


def family_of(model: nn.Module) -> ModuleType | None:
    """Returns the file that knows how a model calls its decoder, None if it has none."""
    return next((family for family in FAMILIES if family.has_decoder(model)), None)


def has_decoder(model: nn.Module) -> bool:
    """Whether a model has a decoder of queries, of whatever family."""
    return family_of(model) is not None


def _places(model: nn.Module, tap: Tap, owner: str) -> tuple[Tap, ...]:
    """The places in a model that taps by the name :data:`MEMORY` read."""
    family = family_of(model)
    if family is None:
        raise ValueError(without_queries(model, owner))
    return family.call_of(model) if tap.where == 'input' else family.memory_of(model)


FOUND_BY[MEMORY] = _places


@contextmanager
def decoder_watched(model: nn.Module, owner: str, stop: bool = False) -> Iterator[Asked]:
    """Notes what the decoder of a model is called with while the block runs.

    Args:
        model (nn.Module): The model.
        owner (str): Name of the model in messages.
        stop (bool): Whether the forward ends with the call. Defaults to False.

    Yields:
        Asked: The call; filled while the model runs.
    """
    asked, family = Asked(model, owner), family_of(model)
    if family is None:
        yield asked
        return

    def note(call: dict[str, Any] | None) -> None:
        asked.call = call
        if stop:
            raise _Called

    with family.watched(model, note), suppress(_Called):
        yield asked


def without_queries(model: nn.Module, owner: str) -> str:
    """The message about a model that cannot be asked, with what to type instead.

    Args:
        model (nn.Module): The model.
        owner (str): Its name in messages.
    """
    names = [kind.name for kind in KINDS if ' with ' not in kind.name]
    return (
        f'{owner} ({type(model).__name__}) has no queries that both models could be asked with '
        f'({", ".join(names)} have). Compare maps in place of `queries`: '
        "tap='neck', loss=dict(type='mmkd_plugin.PearsonLoss', loss_weight='auto')"
    )


def check_takes(kind: Kind, group: Group, owner: str, whose: str) -> None:
    """Refuses queries that a model cannot be asked with.

    Args:
        kind (Kind): The family of the model.
        group (Group): The queries.
        owner (str): Name of the model in messages.
        whose (str): The model that the queries come from.

    Raises:
        ValueError: If they have another form.
    """
    if kind.form == group.form:
        return
    boxes = [one.name for one in detectors.KINDS if not issubclass(one, detectors.Embedded)]
    raise ValueError(
        f'{owner} ({type(kind.model).__name__}) takes {kind.form}, and the queries of the {whose} '
        f'are {group.form}; both models must take the same. {", ".join(boxes)} take boxes, any '
        'with any other; other kinds go with their own kind alone'
    )
