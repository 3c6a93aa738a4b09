"""Heads that classify masks: a query is learnt numbers, and its answer a class and a mask.

Such a query has no reference point, and its numbers mean something to the model alone that has
learnt them. So the student is asked with the teacher's, as it would be with its own, and learns
what they stand for; a model of another family or width cannot be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmkd_plugin.queries.kinds import Group, Kind
from mmkd_plugin.taps import Tap
from mmkd_plugin.taps.classifiers import HEADS, ForwardHook

#: The part of a head whose results a question reads, and those that make it one of this kind.
PIXELS = 'pixel_decoder'
PARTS = (PIXELS, 'transformer_decoder', 'query_embed', 'cls_embed', 'mask_embed')


class MaskHead(Kind):
    """A head of mmdet that classifies masks, also inside a segmentor of mmseg."""

    answers = 'masks'
    #: The embeddings that make a query.
    learnt: ClassVar[tuple[str, ...]]

    @classmethod
    def fits(cls, model: nn.Module, call: dict[str, Any]) -> bool:
        """Whether the head of a model has these embeddings and no others."""
        embeddings = ('query_feat', 'query_embed')
        has = tuple(name for name in embeddings if hasattr(call.get('head'), name))
        return has == cls.learnt

    @property
    def form(self) -> str:
        """Learnt numbers of this family and width."""
        return f'{self.width} learnt numbers each, of {self.name}'

    @property
    def width(self) -> int:
        """How many numbers are learnt for a query."""
        return sum(self._widths)

    @property
    def _widths(self) -> list[int]:
        return [getattr(self.call['head'], name).embedding_dim for name in self.learnt]

    @property
    def classes(self) -> int:
        """How many classes its answers have, without "no object"."""
        return self.call['head'].num_classes

    def own(self) -> Group:
        """Returns all learnt embeddings."""
        weights = [getattr(self.call['head'], name).weight.detach() for name in self.learnt]
        return self.made_of(torch.cat(weights, -1))

    def made_of(self, numbers: Tensor) -> Group:
        """Returns the queries that numbers ``(Q, width)`` make."""
        return Group(self.form, numbers[:, :0], numbers)

    def ask(self, group: Group) -> list[Tensor]:
        """Runs the layers once more, on the maps of the call.

        Args:
            group (Group): The queries.

        Returns:
            list[Tensor]: Class scores ``(layers, N, Q, C + 1)``, "no object" last, then logits of
            masks ``(layers, N, Q, H, W)``.
        """
        head, pixels = self.call['head'], self.call['pixels']
        numbers = group.embeddings.to(getattr(head, self.learnt[0]).weight.dtype)
        given = dict(zip(self.learnt, numbers.split(self._widths, -1)))
        stand_ins = {name: SimpleNamespace(weight=x) for name, x in given.items()}
        with _in_place_of(head, {**stand_ins, PIXELS: lambda *_, **__: pixels}):
            answers = self.call['forward'](self.call['features'], self.call['samples'])
        return [x if isinstance(x, Tensor) else torch.stack(list(x)) for x in answers]


class ContentAndPosition(MaskHead):
    """Mask2Former: a query is the content that the first layer gets, and its positional part."""

    name = 'Mask2Former'
    learnt = ('query_feat', 'query_embed')


class MaskPositionAlone(MaskHead):
    """MaskFormer: a query is its positional part, and the content is empty."""

    name = 'MaskFormer'
    learnt = ('query_embed',)


#: The families.
KINDS = (ContentAndPosition, MaskPositionAlone)


def head_of(model: nn.Module) -> str | None:
    """Returns the name of the head of a model that classifies masks, None if it has none.

    Args:
        model (nn.Module): A detector of mmdet or a segmentor of mmseg.
    """
    for name in HEADS:
        if all(hasattr(getattr(model, name, None), part) for part in PARTS):
            return name
    return None


def has_decoder(model: nn.Module) -> bool:
    """Whether a model has a head that classifies masks."""
    return head_of(model) is not None


def memory_of(model: nn.Module) -> tuple[Tap, ...]:
    """The place of the map that all masks are made of."""
    return (Tap(f'{head_of(model)}.{PIXELS}', (0,), call=0),)


def call_of(model: nn.Module) -> tuple[Tap, ...]:
    """The place of all maps that the layers of the head read, after which it can be asked."""
    return (Tap(f'{head_of(model)}.{PIXELS}', call=0),)


@contextmanager
def watched(model: nn.Module, note: Callable[[dict[str, Any] | None], None]) -> Iterator[None]:
    """Tells what the head of a model is called with, and its maps, while the block runs.

    Args:
        model (nn.Module): The model.
        note (Callable): Takes the head, its ``forward``, its arguments and its maps, by name.
    """
    head = model.get_submodule(head_of(model))
    forward, call = head.forward, {}

    def called(features: Any, samples: Any, *args: Any, **kwargs: Any) -> Any:
        call.update(head=head, forward=forward, features=features, samples=samples)
        return forward(features, samples, *args, **kwargs)

    def decoded(pixels: Any) -> Any:
        note({**call, 'pixels': pixels} if call else None)
        return pixels

    hook = ForwardHook(head.get_submodule(PIXELS), decoded)
    with _in_place_of(head, dict(forward=called)):
        try:
            yield
        finally:
            hook.remove()


@contextmanager
def _in_place_of(module: nn.Module, parts: dict[str, Any]) -> Iterator[None]:
    """Lets a module find other parts by some names while the block runs; it keeps its own."""
    before = {name: vars(module)[name] for name in parts if name in vars(module)}
    vars(module).update(parts)
    try:
        yield
    finally:
        for name in parts:
            del vars(module)[name]
        vars(module).update(before)
