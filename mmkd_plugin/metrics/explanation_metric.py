"""What measures of explanations have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmkd_plugin.building import build_module
from mmkd_plugin.distiller import Distiller
from mmkd_plugin.explanations import Chosen, Explainer, choose_classes, scores_of
from mmkd_plugin.registry import HOOKS
from mmkd_plugin.taps import TapReader, Taps, find_module

#: Classes that are explained at once. A batched backward pass holds a map for each.
CLASSES_AT_ONCE = 8


class ExplanationMetric(BaseMetric):
    """A measure of what the tested model's explanations show.

    Args:
        explainer (dict): An :class:`~mmkd_plugin.explanations.Explainer`.
        tap (str | list[str]): The maps that explain.
        collect_device (str): See mmengine's ``BaseMetric``.
        prefix (str): What stands before the names.

    Raises:
        ValueError: If the explainer or the tap is none.
    """

    def __init__(
        self, explainer: dict, tap: str | Sequence[str], collect_device: str, prefix: str
    ) -> None:
        super().__init__(collect_device, prefix)
        self.name = type(self).__name__
        self.explainer = build_module(explainer, f'{self.name}.explainer')
        if not isinstance(self.explainer, Explainer):
            raise ValueError(
                f'{self.name}.explainer: {type(self.explainer).__name__} is no explainer; take '
                'mmkd_plugin.GradCAM, say'
            )
        self.tap = Taps.parse(tap)
        self._model: nn.Module | None = None

    def use_model(self, model: nn.Module) -> None:
        """Takes the model that is tested.

        Raises:
            ValueError: If it has no module of a name, or its scores cannot be explained.
        """
        self.check(model, self.tap, 'student', 'the model')
        self._model = model

    def check(self, model: nn.Module, tap: Taps, side: str, owner: str) -> None:
        """Refuses a model that cannot be explained."""
        owner = f'{self.name}: {owner}'
        for place in (*tap, *self.explainer.scores(side)):
            find_module(model, place, owner)
        scores_of(model, self.explainer.scores(side), owner)

    @property
    def model(self) -> nn.Module:
        """The model that is tested.

        Raises:
            ValueError: If nobody gave it.
        """
        if self._model is None:
            raise ValueError(
                f'{self.name} explains the tested model, which metrics are not given: use the '
                "tools/test.py of this plugin, or add dict(type='mmkd_plugin.ModelForMetrics') to "
                '`custom_hooks`'
            )
        return self._model

    def preprocess(self, data_batch: Any) -> tuple[Tensor, list]:
        """Images and data samples as the tested model gets them."""
        data = self.model.data_preprocessor(data_batch, False)
        return data['inputs'], data['data_samples']


@HOOKS.register_module()
class ModelForMetrics(Hook):
    """Hands the model to the metrics that explain it, before validation and test.

    ``tools/test.py`` of this package adds it by itself.

    Examples:
        >>> custom_hooks = [dict(type='mmkd_plugin.ModelForMetrics')]  # for the stock tools
    """

    def before_val(self, runner: Runner) -> None:
        """Before each validation."""
        self._give(runner.model, runner.val_evaluator.metrics)

    def before_test(self, runner: Runner) -> None:
        """Before a test."""
        self._give(runner.model, runner.test_evaluator.metrics)

    def _give(self, model: nn.Module, metrics: Sequence[BaseMetric]) -> None:
        model = model.module if is_model_wrapper(model) else model
        model = model.student if isinstance(model, Distiller) else model
        for metric in metrics:
            if isinstance(metric, ExplanationMetric):
                metric.use_model(model)


@torch.no_grad()
def seen_classes(
    model: nn.Module,
    inputs: Tensor,
    data_samples: list,
    explainer: Explainer,
    side: str = 'student',
    among: Tensor | None = None,
) -> Chosen:
    """All classes that a model sees in images, and where.

    Args:
        model (nn.Module): A model of mmseg or mmdet in eval mode.
        inputs (Tensor): ``(N, C, H, W)`` from its data preprocessor.
        data_samples (list): Their data samples.
        explainer (Explainer): Says which scores to read, and when a class is seen.
        side (str): ``'student'`` or ``'teacher'``: whose name of the scores. Defaults to
            ``'student'``.
        among (Tensor, optional): ``(N, classes)`` bool, what to leave out. Defaults to None.

    Returns:
        Chosen: With as many columns as the image with most classes needs.
    """
    taps = explainer.scores(side)
    kind = scores_of(model, taps)
    with TapReader(model, taps, clone=list(taps)) as reader:
        model(inputs, data_samples, mode='tensor')
    scores = taps.of({tap: reader.read(tap) for tap in taps})
    chosen = choose_classes(scores, kind, kind.classes, explainer.score_thr)
    wanted = chosen.present
    if among is not None:
        wanted &= among.gather(1, chosen.classes.clamp(min=0))
    most = int(wanted.sum(1).max())
    order = wanted.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    classes = chosen.classes.where(wanted, -1).gather(1, order)
    positions = [
        x.gather(1, order[:, :, None, None, None].expand(-1, -1, *x.shape[2:]))
        for x in chosen.positions
    ]
    return Chosen(classes, positions)


def in_parts(chosen: Chosen, size: int = CLASSES_AT_ONCE) -> Iterator[Chosen]:
    """A few columns at a time."""
    for start in range(0, chosen.classes.shape[1], size):
        columns = slice(start, start + size)
        yield Chosen(chosen.classes[:, columns], [x[:, columns] for x in chosen.positions])


def picture(maps: Tensor, sample: Any) -> Tensor:
    """Maps ``(..., H, W)`` of a padded image without the padding."""
    height, width = sample.metainfo.get('img_shape', maps.shape[-2:])[:2]
    return maps[..., :height, :width]
