"""Scene: one image and its ground truth. Viewer: the maps and predictions of one model for it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib import colormaps
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from mmkd_plugin.assigners.boxes import upright
from mmkd_plugin.explanations import Chosen, Explainer, Explanation, evaluating, explain
from mmkd_plugin.taps import Maps, Tap, TapReader, Taps, find_module
from mmkd_plugin.taps.dry_run import DryRun, read_once
from mmkd_plugin.teachers.dense_forward import dense_forward, heads_of
from mmkd_plugin.teachers.preprocessing import InputConverter

#: Colours of the classes of a data set without a palette.
COLORS = colormaps['tab20'].colors


@dataclass(frozen=True)
class Boxes:
    """Boxes of a detector, or of the ground truth.

    Args:
        corners (np.ndarray): ``(n, 4)``: x1, y1, x2, y2 in pixels of the original image.
        labels (np.ndarray): ``(n,)``, numbers of the classes.
        scores (np.ndarray, optional): ``(n,)``, from 0 to 1. Defaults to None.
        ignored (np.ndarray): ``(m, 4)``, boxes in which a prediction is neither right nor wrong.
            Defaults to an empty array.
    """

    corners: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None
    ignored: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))

    def __len__(self) -> int:
        return len(self.labels)

    def over(self, score: float) -> Boxes:
        """The boxes with at least this score.

        Args:
            score (float): The least score, from 0 to 1.
        """
        keep = self.scores >= score
        return Boxes(self.corners[keep], self.labels[keep], self.scores[keep])


#: Label maps ``(H, W)`` or boxes.
Labels = np.ndarray | Boxes


@dataclass(frozen=True)
class Meta:
    """Names and colours of the classes of a data set.

    Args:
        classes (Sequence[str]): Their names.
        palette (Sequence[Sequence[int]]): Their colours, RGB from 0 to 255.
        ignore_index (int): Label of the pixels that do not count. Defaults to 255.
    """

    classes: Sequence[str]
    palette: Sequence[Sequence[int]]
    ignore_index: int = 255

    @classmethod
    def of(cls, metainfo: Mapping[str, Any] | None, model: nn.Module) -> Meta:
        """Takes names and colours from a data set, and the label to ignore from a segmentor.

        Args:
            metainfo (Mapping, optional): ``classes`` and ``palette`` of the data set; each may be
                missing.
            model (nn.Module): A model that learns from the data set.
        """
        metainfo = metainfo or {}
        palette = metainfo.get('palette')
        if isinstance(palette, str) or palette is None or not len(palette):
            palette = [[round(255 * v) for v in color] for color in COLORS]
        head = getattr(model, 'decode_head', None)
        head = head[-1] if isinstance(head, nn.ModuleList) else head
        return cls(metainfo.get('classes') or (), palette, getattr(head, 'ignore_index', 255))

    def name(self, label: int) -> str:
        """Name of the class of a label."""
        return str(self.classes[label]) if label < len(self.classes) else f'class {label}'

    def color(self, label: int) -> tuple[float, ...]:
        """Colour of the class of a label, RGB from 0 to 1."""
        return tuple(v / 255 for v in self.palette[label % len(self.palette)])


@dataclass
class Scene:
    """One image as the models get it.

    Args:
        name (str): Name of the image on pages and in files.
        image (np.ndarray): ``(h, w, 3)``, uint8 RGB, as the pipeline made it.
        size (tuple[int, int]): Width and height of the original image, pixels.
        covers (tuple[float, float]): Width and height that the padded input covers, in pixels of
            the original image.
        inputs (Tensor): ``(1, C, H, W)``, from the student's preprocessor.
        samples (list): One data sample.
        truth (Labels, optional): The ground truth, or None.
    """

    name: str
    image: np.ndarray
    size: tuple[int, int]
    covers: tuple[float, float]
    inputs: Tensor
    samples: list
    truth: Labels | None

    @classmethod
    def of(cls, data: dict, preprocessor: nn.Module) -> Scene:
        """Makes the scene of an item of a data set, on the device of a preprocessor.

        Args:
            data (dict): ``inputs`` ``(C, h, w)`` and ``data_samples``, as a pipeline packs them.
            preprocessor (nn.Module): The student's data preprocessor.
        """
        raw = data['inputs']
        image = raw.detach().cpu().numpy().transpose(1, 2, 0)
        image = image[..., 2::-1] if image.shape[2] >= 3 else image[..., :1].repeat(3, 2)
        batch = preprocessor(pseudo_collate([data]), False)
        inputs, samples = batch['inputs'], batch['data_samples']
        height, width = samples[0].metainfo.get('ori_shape', raw.shape[-2:])[:2]
        covers = tuple(
            float(padded * original / seen)
            for padded, original, seen in zip(
                inputs.shape[:-3:-1], (width, height), raw.shape[:-3:-1]
            )
        )
        path = samples[0].metainfo.get('img_path')
        return cls(
            Path(path).stem if path else 'image',
            np.ascontiguousarray(image.clip(0, 255), dtype=np.uint8),
            (int(width), int(height)),
            covers,
            inputs,
            samples,
            _fitted(truth_of(data['data_samples']), (height, width)),
        )


class Viewer:
    """Reads maps, predictions and explanations of one model, and leaves the model as it was.

    Args:
        name (str): Name of the model in the pictures.
        model (nn.Module): A segmentor or detector.
        preprocessor (nn.Module): The data preprocessor of the model whose input the scenes hold.
            The viewer converts the input for its own model.
        side (str): ``'student'`` or ``'teacher'``. Defaults to ``'student'``.

    Attributes:
        predicts (bool): Whether the model predicts anything; one says that it does not by
            ``predicts = False``.
    """

    def __init__(
        self, name: str, model: nn.Module, preprocessor: nn.Module, side: str = 'student'
    ) -> None:
        self.name = name
        self.side = side
        self.model = model
        self.predicts = getattr(model, 'predicts', True)
        self._convert = InputConverter.between(preprocessor, model.data_preprocessor)
        self._runs: dict[tuple[Tap, ...], DryRun] = {}

    @torch.no_grad()
    def read(self, scene: Scene, taps: Sequence[Tap]) -> dict[Tap, Maps]:
        """Reads taps in one forward.

        Args:
            scene (Scene): The image.
            taps (Sequence[Tap]): The taps; without any, the model does not run.

        Returns:
            dict[Tap, Maps]: Maps on the CPU, in float32.

        Raises:
            ValueError: If the model has no such module, or it does not run.
        """
        if not taps:
            return {}
        owner = f"model '{self.name}'"
        for tap in taps:
            find_module(self.model, tap, owner)
        heads = heads_of(self.model, taps, owner)
        inputs = self._convert(scene.inputs, scene.samples)

        def forward() -> None:
            dense_forward(self.model, inputs, copy.deepcopy(scene.samples), heads)

        with evaluating(self.model):
            run = self._runs.get(tuple(taps))
            if run is None:
                run = self._runs[tuple(taps)] = read_once(self.model, taps, forward)
                for tap in taps:
                    if not run.calls[tap]:
                        raise ValueError(f"{owner}: '{tap}' does not run in a forward")
            with TapReader(self.model, taps, run.in_place, places=run.places) as reader:
                forward()
        return {tap: _cpu(reader.read(tap)) for tap in taps}

    @torch.no_grad()
    def predict(self, scene: Scene) -> Labels | None:
        """Predicts a label map or boxes.

        Args:
            scene (Scene): The image.

        Returns:
            Labels | None: In pixels of the original image; None if the model predicts neither.
        """
        inputs = self._convert(scene.inputs, scene.samples)
        with evaluating(self.model):
            sample = self.model(inputs, copy.deepcopy(scene.samples), mode='predict')[0]
        return labels_of(sample, 'pred')

    def explain(
        self, scene: Scene, explainer: Explainer, taps: Taps, chosen: Chosen | None
    ) -> Explanation:
        """Explains class scores.

        Args:
            scene (Scene): The image.
            explainer (Explainer): The way to explain.
            taps (Taps): The maps that explain.
            chosen (Chosen, optional): The classes to explain, or None for those that this model
                sees most.
        """
        inputs = self._convert(scene.inputs, scene.samples)
        samples = copy.deepcopy(scene.samples)
        return explain(self.model, inputs, samples, explainer, taps, chosen, self.side)


def evenly(count: int, length: int) -> list[int]:
    """Numbers of items that are spread evenly over a sequence.

    Args:
        count (int): How many items.
        length (int): Length of the sequence; if it is shorter than ``count``, all are taken.

    Examples:
        >>> evenly(3, 101)
        [0, 50, 100]
    """
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int)).tolist()


def labels_of(sample: Any, kind: str) -> Labels | None:
    """The label map or the boxes of a data sample.

    Args:
        sample (Any): A data sample of mmseg or mmdet.
        kind (str): ``'pred'`` for the prediction or ``'gt'`` for the ground truth.

    Returns:
        Labels | None: None if the sample has neither.
    """
    if f'{kind}_sem_seg' in sample and 'data' in getattr(sample, f'{kind}_sem_seg'):
        labels = getattr(sample, f'{kind}_sem_seg').data[0]
        return labels.long().cpu().numpy()  # floats, if one score tells two classes apart
    found = getattr(sample, f'{kind}_instances', None)
    if found is None or 'bboxes' not in found:
        return None
    corners, labels = _corners(found.bboxes), found.labels.cpu().numpy()
    scores = found.scores.detach().float().cpu().numpy() if 'scores' in found else None
    drawable = np.isfinite(corners).all(1)  # a model that is hardly trained may predict infinity
    return Boxes(corners[drawable], labels[drawable], None if scores is None else scores[drawable])


def truth_of(sample: Any) -> Labels | None:
    """The ground truth of a data sample, with the boxes to ignore.

    Args:
        sample (Any): A data sample of mmseg or mmdet.

    Returns:
        Labels | None: A label map of the pipeline's size, or boxes in pixels of the original
        image.
    """
    truth = labels_of(sample, 'gt')
    if isinstance(truth, Boxes):
        ignored = getattr(sample, 'ignored_instances', None)
        if ignored is not None and 'bboxes' in ignored:
            return Boxes(truth.corners, truth.labels, ignored=_corners(ignored.bboxes))
    return truth


def _fitted(truth: Labels | None, shape: Sequence[int]) -> Labels | None:
    """A label map in the size of the original image, if the pipeline resized it."""
    if not isinstance(truth, np.ndarray) or truth.shape == tuple(shape):
        return truth
    size = (int(shape[1]), int(shape[0]))
    return cv2.resize(truth.astype(np.int32), size, interpolation=cv2.INTER_NEAREST)


def _corners(boxes: Any) -> np.ndarray:
    return upright(boxes).detach().float().cpu().numpy().reshape(-1, 4)


def _cpu(maps: Maps) -> Maps:
    return maps.float().cpu() if isinstance(maps, Tensor) else [m.float().cpu() for m in maps]
