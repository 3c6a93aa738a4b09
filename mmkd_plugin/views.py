"""View: the request of one term to one model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmkd_plugin.explanations import Chosen, Explainer, Explanation, Scores, explain, scores_of
from mmkd_plugin.queries import Queries, has_decoder, without_queries
from mmkd_plugin.taps import Maps, Tap, Taps, places_of
from mmkd_plugin.taps.classifiers import CLASS_SCORES
from mmkd_plugin.taps.example import EXAMPLE_SIZES, example_batch, random_state_kept

#: The kinds of tensors that a loss may compare.
KINDS = ('maps', 'gradients', 'explanations', 'queries', 'rois')


@dataclass(frozen=True)
class View:
    """The request of one term to one model: maps, gradients or explanations at some taps.

    Views that ask for the same are equal, whichever terms they belong to. Explainers are compared
    by identity, so the explanations of two terms stay apart.

    Args:
        taps (Taps): The places in the model.
        kind (str): ``'maps'``: the maps at the taps. ``'gradients'``: the gradients of the model's
            task loss with respect to these maps. ``'explanations'``: explanations of the model's
            class scores by these maps. ``'queries'``: answers of the model's decoder to queries
            that both models are asked. ``'rois'``: what the RoI heads give for the RoIs that the
            student samples. Defaults to ``'maps'``.
        explainer (Explainer, optional): Makes the explanations. Defaults to None.
        side (str): ``'student'`` or ``'teacher'``: selects the explainer's tap of the class
            scores. Defaults to ``'teacher'``.
        assigned (bool): Whether the term also wants to know what the assigner of the model's head
            found. Defaults to False.
        entrance (Taps, optional): Places before the taps at which maps of another model can go in,
            to be run as far as the taps. Defaults to None: nothing goes in.
        queries (Queries, optional): The queries to ask. Defaults to None.
        rois (Taps, optional): The student's taps, whose RoIs are asked about, one for each of the
            taps. Defaults to None.
        term (str): Name of the term in messages, such as ``'distill.cwd'``. Defaults to ``''``.
        loss (str): Name of its loss in messages. Defaults to ``''``.

    Examples:
        >>> from mmkd_plugin import Taps, View
        >>> view = View(Taps.parse('neck'))
        >>> view == View(Taps.parse('neck'), term='distill.cwd')
        True
        >>> [str(tap) for tap in view.reads()]
        ['neck']
    """

    taps: Taps
    kind: str = 'maps'
    explainer: Explainer | None = None
    side: str = 'teacher'
    assigned: bool = False
    entrance: Taps | None = None
    queries: Queries | None = None
    rois: Taps | None = None
    term: str = field(default='', compare=False)
    loss: str = field(default='', compare=False)

    @property
    def scores(self) -> Taps:
        """The taps of the explained class scores; empty for other kinds."""
        return Taps(()) if self.explainer is None else self.explainer.scores(self.side)

    def reads(self) -> tuple[Tap, ...]:
        """Returns all taps that the model is read at."""
        return (*self.taps, *self.scores, *(self.entrance or ()))

    def on_path(self) -> tuple[Tap, ...]:
        """Returns the taps from which later outputs need an autograd graph."""
        return () if self.kind in ('maps', 'queries', 'rois') else tuple(self.taps)

    def check_model(self, model: nn.Module, owner: str) -> None:
        """Refuses a model that cannot show this, by its modules alone.

        Args:
            model (nn.Module): The model.
            owner (str): Name of the model in the error.

        Raises:
            ValueError: If it has no decoder that can be asked, or a gradient is needed at a map
                that is computed from what a head gives: nothing of the model follows from it.
        """
        if self.queries is not None and not has_decoder(model):
            raise ValueError(without_queries(model, owner))
        for tap in self.on_path():
            if any(place.where == CLASS_SCORES for place in places_of(model, tap, owner)):
                raise ValueError(
                    f"{owner}: '{tap}' is computed from what its head gives, and {self.loss} takes "
                    f'{self.kind} there, which needs a map that the model goes on with; tap a '
                    'module by its name'
                )

    def context(self, model: nn.Module) -> AbstractContextManager:
        """Returns the context in which the forward and the backward pass of a model run.

        Args:
            model (nn.Module): The model.

        Returns:
            AbstractContextManager: The context of the explainer; without one it does nothing.
        """
        return nullcontext() if self.explainer is None else self.explainer.context(model)

    def of(self, read: Mapping[Tap, Maps]) -> Maps:
        """Returns the maps at the taps of this view.

        Args:
            read (Mapping[Tap, Maps]): The maps at each tap of the model, or the gradients there.

        Returns:
            Tensor | list[Tensor]: Maps ``(N, C, H, W)``.
        """
        return self.taps.of(read)

    def choose(self, read: Mapping[Tap, Maps], kind: Scores, step: int) -> Chosen:
        """Chooses the classes to explain.

        Args:
            read (Mapping[Tap, Maps]): The maps at each tap of the model.
            kind (Scores): How to read the class scores.
            step (int): Number of the iteration, which seeds the draw of classes.

        Returns:
            Chosen: The classes, and the positions at which the model sees them.
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
        """Explains the chosen classes after a forward pass.

        Args:
            read (Mapping[Tap, Maps]): The maps at each tap of the model, with an autograd graph.
            chosen (Chosen): The classes to explain.
            kind (Scores): How to read the class scores.
            size (Sequence[int], optional): Height and width of the images, pixels. None leaves the
                explanations in the size of the maps.
            create_graph (bool): Whether the explanations are differentiable.

        Returns:
            Explanation: One map of explanations for each tapped map.
        """
        scores = self.scores.of(read)
        return self.explainer(
            self.of(read), scores, chosen, kind=kind, size=size, create_graph=create_graph
        )


def of_kind(views: Iterable[View], *kinds: str) -> list[View]:
    """Returns the views of these kinds, each once; without kinds, all views."""
    return list(dict.fromkeys(view for view in views if not kinds or view.kind in kinds))


def taps_of(views: Iterable[View], *kinds: str) -> list[Tap]:
    """Returns the taps of the views of these kinds, each once; without kinds, of all views."""
    return list(dict.fromkeys(tap for view in of_kind(views, *kinds) for tap in view.reads()))


def try_explaining(
    view: View,
    model: nn.Module,
    device: torch.device,
    owner: str,
    size: int = EXAMPLE_SIZES[0],
) -> tuple[Scores, list[Tensor]]:
    """Explains a made-up image, so that an error is raised before training starts.

    Args:
        view (View): A view of explanations.
        model (nn.Module): The model, or a copy of it.
        device (torch.device): The device for the trial. The model is moved there and back.
        owner (str): Name of the model in messages.
        size (int): Height and width of the image, pixels. Defaults to 128.

    Returns:
        tuple[Scores, list[Tensor]]: The kind of the model's class scores, and a corner of its
        explanations, ``(1, C, 8, 8)`` for each tapped map.

    Raises:
        ValueError: If the model cannot be explained.
    """
    here = f'{view.term}: {owner}'
    kind = scores_of(model, view.scores, here)
    home = next(model.parameters()).device
    with random_state_kept():  # connectors start alike with and without explanations
        model.to(device)
        inputs, samples = example_batch(model, device, size)
    try:
        found = explain(model, inputs, samples, view.explainer, view.taps, side=view.side)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{here}'s scores at '{view.scores}' cannot be explained by '{view.taps}': {error}"
        ) from error
    finally:
        model.to(home)
    return kind, [x[:, 0, :, :8, :8] for x in found.maps]
