"""Made-up images with labels for every kind of model, and hooks around the training on them."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import CheckpointLoader, Runner
from torch import nn
from torch.utils.data import Dataset

from benchmarks.zoo.shrinking import NOTHING

#: Meta information that pipelines of the libraries give to an image.
META = dict(
    scale_factor=(1.0, 1.0),
    flip=False,
    flip_direction=None,
    img_path='made_up.png',
    border=(0.0, 0.0, 0.0, 0.0),  # that CenterNet's test pipeline adds
)

#: Weights are smaller; memory that nobody has written may be anything.
HUGE = 1e4
#: Parameters that only a file of weights writes: zeros, as memory often is, make the embedding NaN.
UNWRITTEN = '.text_projection', '.positional_embedding'


@DATASETS.register_module()
class MadeUpImages(Dataset):
    """Two images, with all labels that models of a library may ask for.

    Args:
        library (str): ``'mmseg'`` or ``'mmdet'``.
        side (int): Height and width, pixels.
        classes (int): Labels are below this.
        channels (int): Channels of the images. Defaults to 3.
        label_scale (float): Height of a detector's label map by that of the image. Defaults to 1.
        proposals (bool): Whether there are proposals. Defaults to False: a detector that finds
            them itself takes those instead.
        masks (bool): Whether objects have masks. Defaults to True.
    """

    def __init__(
        self,
        library: str,
        side: int,
        classes: int,
        channels: int = 3,
        label_scale: float = 1.0,
        proposals: bool = False,
        masks: bool = True,
    ) -> None:
        self.library, self.side, self.classes = library, side, classes
        self.channels, self.label_side = channels, int(side * label_scale)
        self.proposals, self.masks = proposals, masks
        self.metainfo = dict(
            classes=tuple(f'class {i}' for i in range(classes)), palette=[(0, 0, 0)] * classes
        )

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        random = torch.Generator().manual_seed(index)
        shape = self.channels, self.side, self.side
        image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
        sample = (self.segmented if self.library == 'mmseg' else self.detected)()
        size = self.side, self.side
        sample.set_metainfo(
            dict(META, img_id=index, img_shape=size, ori_shape=size, pad_shape=size)
        )
        return dict(inputs=image, data_samples=sample)

    def segmented(self) -> Any:
        """Labels of a segmentor: each class has a stripe."""
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        rows = torch.arange(self.side) * self.classes // self.side
        labels = rows[:, None].expand(self.side, self.side)[None].contiguous()
        edges = (labels != labels.roll(1, dims=1)).long()
        return SegDataSample(
            gt_sem_seg=PixelData(data=labels),
            gt_edge_map=PixelData(data=edges),
            gt_depth_map=PixelData(data=labels.float() + 1),
        )

    def detected(self) -> Any:
        """Labels of a detector: two boxes, with their masks if those are loaded."""
        import numpy as np
        from mmdet.structures import DetDataSample
        from mmdet.structures.bbox import HorizontalBoxes
        from mmdet.structures.mask import BitmapMasks
        from mmengine.structures import InstanceData, PixelData

        part = self.side // 8
        corners = [(part, part, 4 * part, 5 * part), (4 * part, 3 * part, 7 * part, 7 * part)]
        masks = np.zeros((2, self.side, self.side), np.uint8)
        for mask, (x, y, right, low) in zip(masks, corners, strict=True):
            mask[y:low, x:right] = 1
        boxes = torch.tensor(corners, dtype=torch.float32)
        labels = torch.tensor([0, self.classes - 1])
        ignored = InstanceData(bboxes=HorizontalBoxes(boxes[:0]), labels=labels[:0])
        instances = InstanceData(bboxes=HorizontalBoxes(boxes), labels=labels)
        if self.masks:
            instances.masks = BitmapMasks(masks, self.side, self.side)
        sample = DetDataSample(
            gt_instances=instances,
            ignored_instances=ignored,
            gt_sem_seg=PixelData(
                sem_seg=torch.zeros(1, self.label_side, self.label_side, dtype=torch.long)
            ),
        )
        if self.proposals:
            sample.proposals = InstanceData(bboxes=boxes + 2, scores=torch.ones(2))
        return sample


@CheckpointLoader.register_scheme(prefixes=NOTHING)
def load_nothing(filename: str, map_location: Any = None) -> dict[str, Any]:
    """The weights in a file that has none."""
    return {}


def tame(model: nn.Module) -> None:
    """Gives weights to the parameters that a model leaves as memory that it finds.

    The branches of TridentNet are such, and the text encoder of SAN: they expect a file of weights,
    which we leave out.

    Args:
        model (nn.Module): The model, initialised.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            wild = parameter.numel() and not parameter.abs().max() < HUGE  # NaN is not, either
            if wild or f'.{name}'.endswith(UNWRITTEN):
                parameter.normal_(std=0.02)


@HOOKS.register_module()
class Tame(Hook):
    """Gives weights to the parameters of a model that have none, before training."""

    def before_train(self, runner: Runner) -> None:
        tame(runner.model)


@HOOKS.register_module()
class PredictAtTheEnd(Hook):
    """Predicts the first image of the training data after training, as a validation does."""

    def after_train(self, runner: Runner) -> None:
        predict(runner)


def predict(runner: Runner) -> None:
    """Predicts the first image of the training data.

    Args:
        runner (Runner): One that has trained.

    Raises:
        RuntimeError: If there is not one prediction; what the model raises is passed on.
    """
    batch = next(iter(runner.train_dataloader))
    batch = {key: values[:1] for key, values in batch.items()}
    runner.model.eval()
    with torch.no_grad():
        predicted = runner.model.val_step(batch)
    runner.model.train()
    if len(predicted) != 1:
        raise RuntimeError(f'one image gave {len(predicted)} predictions')
