"""The base of the metrics of explanations, and the hook that gives them the tested model."""

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

#: Classes that are explained at once: a batched backward pass holds a map for each class.
CLASSES_AT_ONCE = 8


class ExplanationMetric(BaseMetric):
    """A metric of the explanations of the tested model.

    Args:
        explainer (dict): Config of an :class:`~mmkd_plugin.explanations.Explainer`.
        tap (str | list[str]): The maps that explain.
        collect_device (str): ``'cpu'`` or ``'gpu'``, see mmengine's ``BaseMetric``.
        prefix (str): Text before the names of the results.

    Raises:
        ValueError: If ``explainer`` is not an explainer, or ``tap`` is not a tap.
    """

    def __init__(
        self, explainer: dict, tap: str | Sequence[str], collect_device: str, prefix: str
    ) -> None:
        super().__init__(collect_device, prefix)
        self.name = type(self).__name__
        self.explainer = build_module(explainer, f'{self.name}.explainer')
        if not isinstance(self.explainer, Explainer):
            raise ValueError(
                f'{self.name}.explainer: {type(self.explainer).__name__} is not an explainer; '
                'take mmkd_plugin.GradCAM, for example'
            )
        self.tap = Taps.parse(tap)
        self._model: nn.Module | None = None

    def use_model(self, model: nn.Module) -> None:
        """Takes the tested model.

        Args:
            model (nn.Module): A model of mmseg or mmdet.

        Raises:
            ValueError: If a tapped module is missing, or the scores cannot be explained.
        """
        self.check(model, self.tap, 'student', 'the model')
        self._model = model

    def check(self, model: nn.Module, tap: Taps, side: str, owner: str) -> None:
        """Refuses a model that cannot be explained.

        Args:
            model (nn.Module): The model.
            tap (Taps): The maps that explain.
            side (str): ``'student'`` or ``'teacher'``: which of the explainer's taps of scores to
                read.
            owner (str): Name of the model in an error.

        Raises:
            ValueError: If a tapped module is missing, or the scores cannot be explained.
        """
        owner = f'{self.name}: {owner}'
        for place in (*tap, *self.explainer.scores(side)):
            find_module(model, place, owner)
        scores_of(model, self.explainer.scores(side), owner)

    @property
    def model(self) -> nn.Module:
        """The tested model.

        Raises:
            ValueError: If :meth:`use_model` was not called.
        """
        if self._model is None:
            raise ValueError(
                f'{self.name} explains the tested model, which metrics are not given: use the '
                "tools/test.py of this plugin, or add dict(type='mmkd_plugin.ModelForMetrics') to "
                '`custom_hooks`'
            )
        return self._model

    def preprocess(self, data_batch: Any) -> tuple[Tensor, list]:
        """Images and data samples as the tested model gets them.

        Args:
            data_batch (Any): A batch of the data loader.

        Returns:
            tuple[Tensor, list]: Images ``(N, C, H, W)`` and their data samples.
        """
        data = self.model.data_preprocessor(data_batch, False)
        return data['inputs'], data['data_samples']


@HOOKS.register_module()
class ModelForMetrics(Hook):
    """Gives the tested model to the metrics that explain it, before validation and test.

    ``tools/train.py`` and ``tools/test.py`` of this package add the hook by themselves.

    Examples:
        >>> custom_hooks = [dict(type='mmkd_plugin.ModelForMetrics')]  # for the stock tools
    """

    def before_val(self, runner: Runner) -> None:
        """Gives the model to the metrics of a validation."""
        self._give(runner.model, runner.val_evaluator.metrics)

    def before_test(self, runner: Runner) -> None:
        """Gives the model to the metrics of a test."""
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
    """Finds all classes that a model sees in images, and their positions.

    Args:
        model (nn.Module): A model of mmseg or mmdet in evaluation mode.
        inputs (Tensor): Images ``(N, C, H, W)`` from its data preprocessor.
        data_samples (list): Their data samples.
        explainer (Explainer): The taps of the scores, and the probability from which a class is
            seen.
        side (str): ``'student'`` or ``'teacher'``: which of the explainer's taps of scores to read.
            Defaults to ``'student'``.
        among (Tensor, optional): ``(N, classes)``, bool: False for the classes to leave out.
            Defaults to None.

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
    return chosen._replace(classes=chosen.classes.where(wanted, -1)).take(order)


def in_parts(chosen: Chosen, size: int = CLASSES_AT_ONCE) -> Iterator[Chosen]:
    """Splits chosen classes into parts.

    Args:
        chosen (Chosen): Classes ``(N, K)`` and their positions.
        size (int): Largest number of classes of an image in a part. Defaults to 8.

    Yields:
        Chosen: The next classes of each image.
    """
    for start in range(0, chosen.classes.shape[1], size):
        columns = slice(start, start + size)
        yield Chosen(chosen.classes[:, columns], [x[:, columns] for x in chosen.positions])


def unpadded(maps: Tensor, sample: Any) -> Tensor:
    """Cuts the padding off the maps of an image.

    Args:
        maps (Tensor): ``(..., H, W)`` in the size of the padded image.
        sample (Any): The data sample of the image.

    Returns:
        Tensor: ``(..., h, w)``.
    """
    height, width = sample.metainfo.get('img_shape', maps.shape[-2:])[:2]
    return maps[..., :height, :width]
