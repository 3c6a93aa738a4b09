"""Made-up images and labels, on which models are tried before training."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

# Height and width of a made-up image, pixels. At 128 the coarsest FPN level, stride 128, has one
# position. Some heads pool over windows that need 512. A few transformers take neither size: their
# images have to be as large as their training crops, see `crop_size`.
EXAMPLE_SIZES = (128, 512)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restores the random generators of Python, NumPy and torch at the end of the block.

    The Distiller adds teachers, connectors and dry forwards to a run. They must not change the
    student's initial weights or the order of its data.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def example_batch(
    model: nn.Module, device: torch.device, size: int = EXAMPLE_SIZES[0], masks: bool = True
) -> tuple[Tensor, list | None]:
    """Makes up an image, and labels for it as the model's library expects them.

    Args:
        model (nn.Module): A segmentor of mmseg, a detector of mmdet, a classifier of mmpretrain, or
            another model.
        device (torch.device): The device of the model.
        size (int): Height and width of the image, pixels. Defaults to 128.
        masks (bool): Whether a detector's labels have instance masks. Defaults to True.

    Returns:
        tuple[Tensor, list | None]: The image ``(1, C, size, size)`` as the model's data
        preprocessor returns it, and a list with one data sample, None for a model of another
        library.
    """
    image = torch.randint(0, 256, (image_channels(model), size, size), dtype=torch.uint8)
    library = library_of(model)
    if not library:
        data = model.data_preprocessor(dict(inputs=[image]), False)
        inputs = data['inputs']
        return (inputs if isinstance(inputs, Tensor) else torch.stack(inputs).float()), None
    sample = SAMPLES[library](size, masks)
    if hasattr(model, 'roi_head') and not getattr(model, 'with_rpn', True):
        sample.proposals = InstanceData(bboxes=sample.gt_instances.bboxes, scores=torch.ones(1))
    shape = (size, size)
    sample.set_metainfo(
        dict(
            img_shape=shape,
            ori_shape=shape,
            pad_shape=shape,
            batch_input_shape=shape,
            scale_factor=(1.0, 1.0),
            padding_size=(0, 0, 0, 0),
            flip=False,
            img_id=0,
            img_path='',
        )
    )
    data = model.data_preprocessor(dict(inputs=[image], data_samples=[sample]), False)
    return data['inputs'], [sample.to(device) for sample in data['data_samples']]


class _Met(BaseException):
    """Ends a forward at the first convolution; ``except Exception`` does not catch it."""


def image_channels(model: nn.Module) -> int:
    """Returns the channels of the images that a model takes.

    Its data preprocessor says it by the entries of ``mean``. Without them, the first convolution
    that gets the image itself says it: one behind a rearrangement of the image does not.

    Args:
        model (nn.Module): A model with a data preprocessor.

    Returns:
        int: The channels, 3 if nothing says another number.
    """
    mean = getattr(model.data_preprocessor, 'mean', None)
    if isinstance(mean, Tensor) and mean.numel() > 1:
        return mean.numel()
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    if not convs or convs[0].in_channels in (1, 3):
        return convs[0].in_channels if convs else 3
    taken = 3

    def meet(conv: nn.Conv2d, args: tuple) -> None:
        nonlocal taken
        if args and args[0].shape[1] == 3:
            taken = conv.in_channels
        raise _Met

    handles = [conv.register_forward_pre_hook(meet) for conv in convs]
    like = next(model.parameters())
    try:
        with torch.no_grad():
            model(like.new_zeros(1, 3, EXAMPLE_SIZES[0], EXAMPLE_SIZES[0]), None, mode='tensor')
    except (_Met, Exception):  # a model may raise anything without data samples
        pass
    finally:
        for handle in handles:
            handle.remove()
    return taken


def crop_size(preprocessor: nn.Module) -> tuple[int, ...]:
    """Returns the side of the training crops of mmseg, pixels.

    Args:
        preprocessor (nn.Module): A data preprocessor. One of mmseg may have a ``size`` to which it
            pads crops.

    Returns:
        tuple[int, ...]: The side of square crops, or ``()`` if they are not square or not known.
    """
    size = getattr(preprocessor, 'size', None)
    square = isinstance(size, (list, tuple)) and len(size) == 2 and size[0] == size[1]
    return (size[0],) if square else ()


def library_of(model: nn.Module) -> str:
    """Returns the library that a model's class comes from, one of ``SAMPLES`` or ``''``."""
    roots = [base.__module__.split('.')[0] for base in type(model).__mro__]
    return next((root for root in roots if root in SAMPLES), '')


def _seg_sample(size: int, _: bool) -> Any:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = PixelData(data=torch.zeros(1, size, size, dtype=torch.long))
    return SegDataSample(gt_sem_seg=labels, gt_edge_map=labels.clone())


def _det_sample(size: int, masks: bool) -> Any:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import PixelData

    low, high = size // 8, size - size // 8
    box = torch.tensor([[low, low, high, high]], dtype=torch.float32)
    mask = np.zeros((1, size, size), dtype=np.uint8)
    mask[:, low:high, low:high] = 1
    instances = InstanceData(bboxes=box, labels=torch.zeros(1, dtype=torch.long))
    if masks:
        instances.masks = BitmapMasks(mask, size, size)
    return DetDataSample(
        gt_instances=instances,
        ignored_instances=InstanceData(bboxes=box[:0], labels=torch.zeros(0, dtype=torch.long)),
        gt_sem_seg=PixelData(sem_seg=torch.zeros(1, size, size, dtype=torch.long)),
    )


def _class_sample(_: int, __: bool) -> Any:
    from mmpretrain.structures import DataSample

    return DataSample().set_gt_label(0)


#: Labels for a made-up image, by the library of the model; they get its size, and whether there are
#: to be instance masks.
SAMPLES = dict(mmseg=_seg_sample, mmdet=_det_sample, mmpretrain=_class_sample)
