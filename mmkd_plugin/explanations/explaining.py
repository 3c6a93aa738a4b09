"""One call that explains the class scores of a model on a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmkd_plugin.explanations.choosing import Chosen, scores_of
from mmkd_plugin.explanations.explainers import Explainer, Explanation
from mmkd_plugin.taps import TapReader, Taps


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode, and afterwards each of its modules back in its own mode.

    Args:
        model (nn.Module): The model.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def explain(
    model: nn.Module,
    inputs: Tensor,
    data_samples: list | None,
    explainer: Explainer,
    tap: str | Taps,
    chosen: Chosen | None = None,
    side: str = 'student',
) -> Explanation:
    """Explains the class scores of a model on a batch.

    The model's gradients, modes and buffers stay as they are.

    Args:
        model (nn.Module): A model of mmseg or mmdet.
        inputs (Tensor): Images ``(N, C, H, W)`` from its data preprocessor.
        data_samples (list, optional): Their data samples.
        explainer (Explainer): The way to explain.
        tap (str | Taps): The maps that explain.
        chosen (Chosen, optional): The classes to explain. Defaults to None: the classes with most
            positions in the model's own scores.
        side (str): ``'student'`` or ``'teacher'``: which of the explainer's taps of scores to read.
            Defaults to ``'student'``.

    Returns:
        Explanation: Without a graph.

    Raises:
        ValueError: If the model has no such tap, or its scores cannot be explained.
    """
    taps = tap if isinstance(tap, Taps) else Taps.parse(tap)
    scored = explainer.scores(side)
    kind = scores_of(model, scored)
    learning = [p for p in model.parameters() if p.requires_grad]
    # A map that is overwritten later cannot be differentiated, so every map is copied.
    reader = TapReader(model, [*taps, *scored], clone=list(taps), on_path=list(taps))
    try:
        model.requires_grad_(False)
        with evaluating(model), torch.enable_grad(), explainer.context(model):
            with reader:
                model(inputs, data_samples, mode='tensor')
            maps = {place: reader.read(place) for place in [*taps, *scored]}
            features, scores = taps.of(maps), scored.of(maps)
            chosen = explainer.choose(scores, kind) if chosen is None else chosen
            return explainer(features, scores, chosen, kind, inputs.shape[2:])
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
