"""What a query is in each family of detectors, and what its decoder takes for one.

Two models can be asked the same if both look from the same reference points. In some families the
point is all that a query has, and the model makes the rest from it. In others each query has a
learnt embedding too, which means something only together with its point: the student is asked with
the teacher's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

BOXES = 'boxes'

#: What ``forward_decoder`` of the families here takes.
KNOWN = {
    'query', 'query_pos', 'memory', 'memory_mask', 'memory_pos', 'reference_points',
    'spatial_shapes', 'level_start_index', 'valid_ratios', 'dn_mask',
}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Queries that two models are asked together.

    Args:
        form (str): Which kinds of models can be asked, for messages too.
        places (Tensor): Reference points before the sigmoid, ``(Q, 4)`` with cx, cy, w, h or
            ``(Q, 2)``. Those of each image are ``(N, Q, 4)``.
        embeddings (Tensor, optional): What the teacher has learnt for each query, ``(Q, W)``.
            Defaults to None: nothing.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.queries import Group
        >>> Group('boxes', torch.rand(300, 4)).first(3).places.shape
        torch.Size([3, 4])
    """

    form: str
    places: Tensor
    embeddings: Tensor | None = None

    def first(self, count: int) -> Group:
        """Returns the first queries, of each image."""
        embeddings = self.embeddings if self.embeddings is None else self.embeddings[:count]
        return Group(self.form, self.places[..., :count, :], embeddings)

    def to(self, target: Any) -> Group:
        """Returns the group on another device."""
        embeddings = self.embeddings if self.embeddings is None else self.embeddings.to(target)
        return Group(self.form, self.places.to(target), embeddings)


class Kind(ABC):
    """A family of detectors.

    Args:
        model (nn.Module): A detector of mmdet.
        call (dict[str, Any]): What its ``forward_decoder`` was called with.

    Attributes:
        name (str): Name of the family in messages.
    """

    name: ClassVar[str]

    def __init__(self, model: nn.Module, call: dict[str, Any]) -> None:
        self.model, self.call = model, call

    @classmethod
    @abstractmethod
    def fits(cls, model: nn.Module, call: dict[str, Any]) -> bool:
        """Whether a model that calls its decoder like this is of this family."""

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
        return self.model.bbox_head.num_classes

    @abstractmethod
    def own(self) -> Group:
        """Returns the queries of the call, without those for denoising."""

    def made_of(self, numbers: Tensor) -> Group:
        """Returns the queries that numbers ``(Q, width)`` make."""
        return Group(self.form, numbers)

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


class Anchors(Kind):
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


class Selected(Kind):
    """Boxes that the encoder selects in each image."""

    def own(self) -> Group:
        """Returns the selected boxes."""
        points = self.call['reference_points'].detach().float()
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


class Embedded(Kind):
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


class PositionAlone(Embedded):
    """Conditional DETR: the embedding is the positional part, and the content is empty.

    The decoder computes the points itself. For the time of a question it is given those of the
    group.
    """

    name = 'Conditional DETR'

    @classmethod
    def fits(cls, model: nn.Module, call: dict[str, Any]) -> bool:
        """Whether the decoder computes points from embeddings."""
        head = getattr(getattr(model, 'decoder', None), 'ref_point_head', None)
        alone = 'reference_points' not in call and hasattr(model, 'query_embedding')
        return alone and isinstance(head, nn.Module) and _last(call.get('query_pos')) != 4

    def made_of(self, numbers: Tensor) -> Group:
        """Returns embeddings with the points that this decoder computes from them."""
        places = self.model.decoder.ref_point_head(numbers)
        return Group(self.form, places.detach(), numbers)

    def inputs(self, group: Group) -> dict[str, Any]:
        """Returns the embeddings without content."""
        query_pos = self._each(group.embeddings, 'query_pos')
        return dict(query=self._empty(query_pos), query_pos=query_pos)

    def context(self, group: Group) -> AbstractContextManager:
        """Gives the decoder the points of the group."""
        points = self._each(group.places, 'query_pos')
        head = self.model.decoder.ref_point_head
        return head.register_forward_hook(lambda *_: points)


#: The families, in the order in which they are tried.
KINDS = (Anchors, SelectedWithContent, SelectedAlone, PositionAndContent, PositionAlone)


def kind_of(model: nn.Module, call: dict[str, Any] | None, owner: str) -> Kind:
    """Returns the family of a model.

    Args:
        model (nn.Module): A detector of mmdet.
        call (dict[str, Any], optional): What its ``forward_decoder`` was called with; None if it
            was not.
        owner (str): Name of the model in messages.

    Raises:
        ValueError: If its queries have no reference points that another model could take.
    """
    for kind in KINDS if call is not None and set(call) <= KNOWN else ():
        if kind.fits(model, call):
            return kind(model, call)
    raise ValueError(without_queries(model, owner))


def without_queries(model: nn.Module, owner: str) -> str:
    """The message about a model that cannot be asked, with what to type instead.

    Args:
        model (nn.Module): The model.
        owner (str): Its name in messages.
    """
    names = [kind.name for kind in KINDS if kind is not SelectedAlone]
    return (
        f'{owner} ({type(model).__name__}) has no queries with reference points, which both models '
        f'have to take ({", ".join(names)} do). Compare maps in place of `queries`: '
        "tap='neck', loss=dict(type='mmkd_plugin.PearsonLoss', loss_weight='auto')"
    )


def check_takes(kind: Kind, group: Group, owner: str) -> None:
    """Refuses queries that a model cannot be asked with.

    Args:
        kind (Kind): The family of the model.
        group (Group): The queries, of a teacher.
        owner (str): Name of the model in messages.

    Raises:
        ValueError: If they have another form.
    """
    if kind.form == group.form:
        return
    boxes = [one.name for one in KINDS if not issubclass(one, Embedded)]
    raise ValueError(
        f'{owner} ({type(kind.model).__name__}) takes {kind.form}, and the queries of the teacher '
        f'are {group.form}; both models must take the same. {", ".join(boxes)} take boxes, any '
        'with any other; other kinds go with their own kind alone'
    )


def _last(x: Any) -> int | None:
    """The size of the last dimension of a tensor."""
    return x.shape[-1] if isinstance(x, Tensor) else None
