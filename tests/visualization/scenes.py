"""Made-up images as a pipeline packs them."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.structures import InstanceData, PixelData
from torch import nn

from mmkd_plugin.taps.example import library_of
from mmkd_plugin.visualization import Meta, Scene

META = Meta(['ground', 'box', 'disc', 'ring', 'bar'], [[0, 0, 0], [0, 255, 0], [0, 0, 255]])


def item(model: nn.Module, height: int, width: int, truth: bool = True) -> dict[str, Any]:
    """What a test pipeline packs for an image that it has halved.

    Args:
        model (nn.Module): A segmentor or detector.
        height (int): Of the halved image, pixels.
        width (int): Of the halved image, pixels.
        truth (bool): Whether there is a ground truth: label 0 with a box of label 1 in it.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    if library_of(model) == 'mmseg':
        from mmseg.structures import SegDataSample

        sample = SegDataSample()
        if truth:
            labels = torch.zeros(1, 2 * height, 2 * width, dtype=torch.long)
            labels[:, height:, width:] = 1
            labels[:, 0] = 255
            sample.gt_sem_seg = PixelData(data=labels)
    else:
        from mmdet.structures import DetDataSample

        sample = DetDataSample()
        if truth:
            box = torch.tensor([[width, height, 2 * width, 2 * height]], dtype=torch.float32)
            sample.gt_instances = InstanceData(bboxes=box, labels=torch.ones(1, dtype=torch.long))
    sample.set_metainfo(
        dict(
            ori_shape=(2 * height, 2 * width),
            img_shape=(height, width),
            scale_factor=(0.5, 0.5),
            img_path='a/frankfurt.png',
        )
    )
    return dict(inputs=image, data_samples=sample)


def scene_of(model: nn.Module, height: int = 64, width: int = 64, truth: bool = True) -> Scene:
    """A scene for models that are fed like this one."""
    return Scene.of(item(model, height, width, truth), model.data_preprocessor)
