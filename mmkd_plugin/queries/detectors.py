"""Detectors with a transformer: what a query is in each family, and how the decoder is asked.

Two models can be asked the same if both look from the same reference points. In some families the
point is all that a query has, and the model makes the rest from it. In others each query has a
learnt embedding too, which means something only together with its point: the student is asked with
the teacher's. In DETR the embedding is all there is, and the student learns its meaning.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mmkd_plugin.queries.kinds import Group, Kind
from mmkd_plugin.taps import Tap

BOXES = 'boxes'

#: The modules of a detector that a question runs: its memory comes out of the first.
ENCODER, DECODER, HEAD = 'encoder', 'decoder', 'bbox_head'
#: The method of a detector that runs the decoder.
METHOD = 'forward_decoder'

#: What ``forward_decoder`` of the families here takes.
KNOWN = {
    'query', 'query_pos', 'memory', 'memory_mask', 'memory_pos', 'reference_points',
    'spatial_shapes', 'level_start_index', 'valid_ratios', 'dn_mask',
}  # fmt: skip


class Detector(Kind):
    """A detector of mmdet with a transformer."""

    answers = 'boxes'

    @property
    def form(self) -> str:
        """Which groups its decoder can be asked with."""
        return BOXES

    @property
    def width(self) -> int:
        """How many numbers make a query."""
        return 4

    @property
    def classes(self) -> int:
        """How many classes its answers have."""
        return getattr(self.model, HEAD).num_classes

    def made_of(self, numbers: Tensor) -> Group:
        """Returns the queries that numbers ``(Q, width)`` make."""
        return Group(self.form, numbers)

    def ask(self, group: Group) -> list[Tensor]:
        """Runs decoder and head once more: scores ``(layers, N, Q, C)``, boxes."""
        with self.context(group):
            given = getattr(self.model, METHOD)(**{**self.call, **self.inputs(group)})
        scores, boxes = getattr(self.model, HEAD).forward(**given)
        return [scores if scores.shape[-1] == self.classes else log_odds(scores), boxes]

    @abstractmethod
    def inputs(self, group: Group) -> dict[str, Any]:
        """Returns what ``forward_decoder`` gets in place of the model's own queries."""

    def context(self, group: Group) -> AbstractContextManager:
        """Returns the context in which the decoder is asked."""
        return nullcontext()

    def _each(self, x: Tensor, like: str) -> Tensor:
        """``(Q, D)`` or ``(N, Q, D)`` for each image, in the type of what the call has."""
        x = x.to(self.call[like].dtype)
        return x.expand(len(self.call['memory']), *x.shape[-2:])

    def _empty(self, points: Tensor) -> Tensor:
        """Content that knows nothing, for reference points of each image."""
        memory = self.call['memory']
        return memory.new_zeros(*points.shape[:2], memory.shape[2])

    def _learnt(self) -> Tensor:
        return self.model.query_embedding.weight.detach()


class Anchors(Detector):
    """DAB-DETR: learnt boxes before the sigmoid are ``query_pos``; the content is empty."""

    name = 'DAB-DETR'

    @classmethod
    def fits(cls, model: nn.Module, call: dict[str, Any]) -> bool:
        """Whether the positional part of its queries has four numbers."""
        return 'reference_points' not in call and _last(call.get('query_pos')) == 4

    def own(self) -> Group:
        """Returns the learnt boxes."""
        return Group(self.form, self._learnt())

    def inputs(self, group: Group) -> dict[str, Any]:
        """Returns the boxes without content."""
        points = self._each(group.places, 'query_pos')
        return dict(query=self._empty(points), query_pos=points)


class Selected(Detector):
    """Boxes that the encoder selects in each image."""

    def own(self) -> Group:
        """Returns the selected boxes, which come behind those for denoising."""
        points = self.call['reference_points'][:, -self.model.num_queries :].detach().float()
        return Group(self.form, torch.logit(points, eps=1e-6))

    def _points(self, group: Group) -> Tensor:
        return self._each(group.places.sigmoid(), 'reference_points')


class SelectedWithContent(Selected):
    """DINO: the best box has the first learnt content, and so on; more boxes begin again."""

    name = 'DINO'

    @classmethod
    def fits(cls, model: nn.Module, call: dict[str, Any]) -> bool:
        """Whether it selects boxes and has learnt contents."""
        content = getattr(getattr(model, 'query_embedding', None), 'weight', None)
        selects = 'query_pos' not in call and _last(call.get('reference_points')) == 4
        return selects and _last(content) == call['memory'].shape[-1]

    def inputs(self, group: Group) -> dict[str, Any]:
        """Returns the boxes with the model's own contents, and without groups for denoising."""
        points, contents = self._points(group), self.model.query_embedding.weight
        turns = torch.arange(points.shape[1], device=points.device) % len(contents)
        return dict(
            query=self._each(contents[turns], 'query'), reference_points=points, dn_mask=None
        )


class SelectedAlone(Selected):
    """Two-stage Deformable DETR: content and positional part are computed from the boxes."""

    name = 'Deformable DETR with as_two_stage=True'

    @classmethod
    def fits(cls, model: nn.Module, call: dict[str, Any]) -> bool:
        """Whether it has the layer that makes queries of boxes."""
        return hasattr(model, 'pos_trans_fc') and _last(call.get('reference_points')) == 4

    def inputs(self, group: Group) -> dict[str, Any]:
        """Returns the boxes, and what the model makes of them."""
        points = self._each(group.places, 'reference_points')
        made = self.model.pos_trans_fc(self.model.get_proposal_pos_embed(points))
        query_pos, query = self.model.pos_trans_norm(made).chunk(2, dim=-1)
        return dict(query=query, query_pos=query_pos, reference_points=points.sigmoid())


class Embedded(Detector):
    """Queries with a learnt embedding, from which the teacher computes their points."""

    @property
    def form(self) -> str:
        """Points with embeddings of this family and width."""
        return f'points with {self.width} learnt numbers each, of {self.name}'

    @property
    def width(self) -> int:
        """How many numbers are learnt for a query."""
        return self.model.query_embedding.embedding_dim

    def own(self) -> Group:
        """Returns all learnt embeddings."""
        return self.made_of(self._learnt())


class PositionAndContent(Embedded):
    """One-stage Deformable DETR: the halves of an embedding are positional part and content."""

    name = 'Deformable DETR'

    @classmethod
    def fits(cls, model: nn.Module, call: dict[str, Any]) -> bool:
        """Whether it computes points from the positional part."""
        return hasattr(model, 'reference_points_fc') and 'reference_points' in call

    def made_of(self, numbers: Tensor) -> Group:
        """Returns embeddings with the points that this model computes from them."""
        places = self.model.reference_points_fc(numbers.chunk(2, dim=-1)[0])
        return Group(self.form, places.detach(), numbers)

    def inputs(self, group: Group) -> dict[str, Any]:
        """Returns the embeddings and the points."""
        query_pos, query = self._each(group.embeddings, 'query').chunk(2, dim=-1)
        points = self._each(group.places.sigmoid(), 'reference_points')
        return dict(query=query, query_pos=query_pos, reference_points=points)


class NumbersAlone(Embedded):
    """DETR: the embedding is the positional part, the content is empty, and there is no point."""

    name = 'DETR'

    @property
    def form(self) -> str:
        """Embeddings of this family and width."""
        return f'{self.width} learnt numbers each, of {self.name}'

    @classmethod
    def fits(cls, model: nn.Module, call: dict[str, Any]) -> bool:
        """Whether it has embeddings, and no part that computes points from them."""
        alone = 'reference_points' not in call and hasattr(model, 'query_embedding')
        return alone and _point_layer(model) is None and _last(call.get('query_pos')) != 4

    def made_of(self, numbers: Tensor) -> Group:
        """Returns the embeddings themselves."""
        return Group(self.form, numbers[:, :0], numbers)

    def inputs(self, group: Group) -> dict[str, Any]:
        """Returns the embeddings without content."""
        query_pos = self._each(group.embeddings, 'query_pos')
        return dict(query=self._empty(query_pos), query_pos=query_pos)


class PositionAlone(NumbersAlone):
    """Conditional DETR: the same, but the decoder computes a point from each embedding.

    For the time of a question it is given those of the group.
    """

    name = 'Conditional DETR'
    form = Embedded.form

    @classmethod
    def fits(cls, model: nn.Module, call: dict[str, Any]) -> bool:
        """Whether the decoder computes points from embeddings."""
        alone = 'reference_points' not in call and hasattr(model, 'query_embedding')
        return alone and _point_layer(model) is not None and _last(call.get('query_pos')) != 4

    def made_of(self, numbers: Tensor) -> Group:
        """Returns embeddings with the points that this decoder computes from them."""
        places = self.model.decoder.ref_point_head(numbers)
        return Group(self.form, places.detach(), numbers)

    def context(self, group: Group) -> AbstractContextManager:
        """Gives the decoder the points of the group."""
        points = self._each(group.places, 'query_pos')
        return _point_layer(self.model).register_forward_hook(lambda *_: points)


#: The families, in the order in which they are tried.
KINDS = (
    Anchors,
    SelectedWithContent,
    SelectedAlone,
    PositionAndContent,
    PositionAlone,
    NumbersAlone,
)


def log_odds(scores: Tensor) -> Tensor:
    """Scores of classes and, last, the background as one score for each class.

    Its sigmoid is the probability that the softmax of all gives the class.

    Args:
        scores (Tensor): (..., C + 1).

    Returns:
        Tensor: (..., C), of float32 at least.

    Examples:
        >>> import torch
        >>> scores = torch.tensor([1.0, 2.0, 3.0])
        >>> torch.allclose(log_odds(scores).sigmoid(), scores.softmax(-1)[:2])
        True
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    nothing = scores.new_full((*scores.shape[:-1], 1), -torch.inf)
    before = torch.cat([nothing, scores.logcumsumexp(-1)[..., :-1]], -1)
    behind = torch.cat([scores.flip(-1).logcumsumexp(-1).flip(-1)[..., 1:], nothing], -1)
    return (scores - torch.logaddexp(before, behind))[..., :-1]


def has_decoder(model: nn.Module) -> bool:
    """Whether a model has a decoder as detectors of mmdet have it, of whatever family."""
    return hasattr(model, METHOD)


def memory_of(model: nn.Module) -> tuple[Tap, ...]:
    """The place of the memory that the decoder of a detector reads."""
    return (Tap(ENCODER),)


def call_of(model: nn.Module) -> tuple[Tap, ...]:
    """The places that have run once the decoder of a detector is called."""
    return Tap(ENCODER), Tap(DECODER, (0,), 'input')


@contextmanager
def watched(model: nn.Module, note: Callable[[dict[str, Any] | None], None]) -> Iterator[None]:
    """Tells what the decoder of a detector is called with while the block runs.

    Args:
        model (nn.Module): The detector.
        note (Callable): Takes the arguments by their names, None if some have none.
    """
    method = getattr(model, METHOD)

    def noted(*args: Any, **kwargs: Any) -> Any:
        note(None if args or not set(kwargs) <= KNOWN else kwargs)
        return method(*args, **kwargs)

    setattr(model, METHOD, noted)  # it is no module, which a hook could watch
    try:
        yield
    finally:
        delattr(model, METHOD)


def _point_layer(model: nn.Module) -> nn.Module | None:
    """The layer of a decoder that computes points from embeddings."""
    layer = getattr(getattr(model, 'decoder', None), 'ref_point_head', None)
    return layer if isinstance(layer, nn.Module) else None


def _last(x: Any) -> int | None:
    """The size of the last dimension of a tensor."""
    return x.shape[-1] if isinstance(x, Tensor) else None
