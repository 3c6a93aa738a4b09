"""Queries that two models are asked together, and what a family of models does with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn


@dataclass(frozen=True)
class Group:
    """Queries that two models are asked together.

    Args:
        form (str): Which kinds of models can be asked, for messages too.
        places (Tensor): Reference points before the sigmoid, ``(Q, 4)`` with cx, cy, w, h or
            ``(Q, 2)``; ``(Q, 0)`` if a query has none. Those of each image are ``(N, Q, 4)``.
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

    @property
    def count(self) -> int:
        """How many queries there are."""
        return self.places.shape[-2]


class Kind(ABC):
    """A family of models.

    Args:
        model (nn.Module): The model.
        call (dict[str, Any]): What its decoder was called with.

    Attributes:
        name (str): Name of the family in messages.
        answers (str): What it answers beside the classes: ``'boxes'`` or ``'masks'``.
    """

    name: ClassVar[str]
    answers: ClassVar[str]

    def __init__(self, model: nn.Module, call: dict[str, Any]) -> None:
        self.model, self.call = model, call

    @classmethod
    @abstractmethod
    def fits(cls, model: nn.Module, call: dict[str, Any]) -> bool:
        """Whether a model that calls its decoder like this is of this family."""

    @property
    @abstractmethod
    def form(self) -> str:
        """Which groups its decoder can be asked with."""

    @property
    @abstractmethod
    def width(self) -> int:
        """How many numbers make a query."""

    @property
    @abstractmethod
    def classes(self) -> int:
        """How many classes its answers have."""

    @abstractmethod
    def own(self) -> Group:
        """Returns the queries of the call, without those for denoising."""

    @abstractmethod
    def made_of(self, numbers: Tensor) -> Group:
        """Returns the queries that numbers ``(Q, width)`` make."""

    @abstractmethod
    def ask(self, group: Group) -> list[Tensor]:
        """Runs the decoder for queries; returns the scores and boxes or masks of each layer."""
