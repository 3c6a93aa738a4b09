"""View: what one term wants to see of one model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmkd_plugin.explanations import Chosen, Explainer, Explanation, Scores, explain, scores_of
from mmkd_plugin.taps import Maps, Tap, Taps
from mmkd_plugin.taps.example import EXAMPLE_SIZES, example_batch, random_state_kept

#: What a loss may compare.
KINDS = ('maps', 'gradients', 'explanations')


@dataclass(frozen=True)
class View:
    """What one term wants to see of one model.

    Two views of the same taps and the same kind are one. Explainers are compared by identity, so
    the explanations of two terms stay apart.

    Args:
        taps (Taps): Where.
        kind (str): ``'maps'`` that lie there, ``'gradients'`` of the model's task loss with respect
            to them, or ``'explanations'`` of the model's class scores by them. Defaults to
            ``'maps'``.
        explainer (Explainer, optional): Makes the explanations. Defaults to None.
        side (str): ``'student'`` or ``'teacher'``: whose tap of the class scores the explainer
            reads. Defaults to ``'teacher'``.
        term (str): What messages call the term, such as ``'distill.cwd'``. Defaults to nothing.
        loss (str): What messages call its loss. Defaults to nothing.

    Examples:
        >>> str(View(Taps.parse('neck')).taps)
        'neck'
    """

    taps: Taps
    kind: str = 'maps'
    explainer: Explainer | None = None
    side: str = 'teacher'
    term: str = field(default='', compare=False)
    loss: str = field(default='', compare=False)

    @property
    def scores(self) -> Taps:
        """The taps of the class scores that are explained; empty for other kinds."""
        return Taps(()) if self.explainer is None else self.explainer.scores(self.side)

    def reads(self) -> tuple[Tap, ...]:
        """All taps that are read in the model."""
        return (*self.taps, *self.scores)

    def on_path(self) -> tuple[Tap, ...]:
        """The taps from which there has to be a graph to what lies behind them."""
        return () if self.kind == 'maps' else tuple(self.taps)

    def context(self, model: nn.Module) -> AbstractContextManager:
        """What the forward and the backward pass of the model run in."""
        return nullcontext() if self.explainer is None else self.explainer.context(model)

    def of(self, read: Mapping[Tap, Maps]) -> Maps:
        """What the taps read: a tensor or a list of tensors ``(N, C, H, W)``.

        Args:
            read (Mapping[Tap, Maps]): What each tap read; for gradients, the gradients there.
        """
        return self.taps.of(read)

    def choose(self, read: Mapping[Tap, Maps], kind: Scores, step: int) -> Chosen:
        """The classes to explain, and where the model sees them.

        Args:
            read (Mapping[Tap, Maps]): What each tap read.
            kind (Scores): How the class scores are to be read.
            step (int): Number of the iteration, for the draw of classes.
        """
        return self.explainer.choose(self.scores.of(read), kind, step)

    def explain(
        self,
        read: Mapping[Tap, Maps],
        chosen: Chosen,
        kind: Scores,
        size: Sequence[int] | None,
        create_graph: bool,
    ) -> Explanation:
        """The explanations of a model that ran.

        Args:
            read (Mapping[Tap, Maps]): What each tap read, with a graph.
            chosen (Chosen): What to explain.
            kind (Scores): How the class scores are to be read.
            size (Sequence[int], optional): Height and width of the images; None leaves the
                explanations in the size of the maps.
            create_graph (bool): Whether the explanations are to be differentiable.
        """
        scores = self.scores.of(read)
        return self.explainer(self.of(read), scores, chosen, kind, size, create_graph)


def of_kind(views: Iterable[View], *kinds: str) -> list[View]:
    """The views of these kinds, each once; of all kinds if none is given."""
    return list(dict.fromkeys(view for view in views if not kinds or view.kind in kinds))


def taps_of(views: Iterable[View], *kinds: str) -> list[Tap]:
    """All taps that views of these kinds read, each once; of all kinds if none is given."""
    return list(dict.fromkeys(tap for view in of_kind(views, *kinds) for tap in view.reads()))


def try_explaining(
    view: View,
    model: nn.Module,
    device: torch.device,
    owner: str,
    size: int = EXAMPLE_SIZES[0],
) -> tuple[Scores, list[Tensor]]:
    """Explains a made-up image, so that a model that cannot be explained is refused in time.

    Args:
        view (View): What is to be explained.
        model (nn.Module): The model, or a copy of it.
        device (torch.device): Where to run; the model is moved there and back.
        owner (str): What messages call the model.
        size (int): Height and width of the image, pixels. Defaults to 128.

    Returns:
        tuple[Scores, list[Tensor]]: The kind of the model's class scores, and a corner of its
        explanations, ``(1, C, 8, 8)`` for each tapped map.

    Raises:
        ValueError: If it cannot be explained.
    """
    here = f'{view.term}: {owner}'
    kind = scores_of(model, view.scores, here)
    home = next(model.parameters()).device
    with random_state_kept():  # connectors start alike with and without explanations
        inputs, samples = example_batch(model.to(device), device, size)
    try:
        found = explain(model, inputs, samples, view.explainer, view.taps, side=view.side)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{here}'s scores at '{view.scores}' cannot be explained by '{view.taps}'. {error}"
        ) from error
    finally:
        model.to(home)
    return kind, [x[:, 0, :, :8, :8] for x in found.maps]
