"""The head of FRSKD's segmentation form."""

from __future__ import annotations

from typing import Any

from torch import nn

from mmkd_plugin.registry import MODELS


@MODELS.register_module()
def FCNHead3x3(**kwargs: Any) -> Any:
    """Builds mmsegmentation's ``FCNHead`` with a 3×3 convolution as its classifier, not a 1×1.

    The result is the stock class with another ``conv_seg``. The head of FRSKD's segmentation form
    has one convolution, BN and ReLU before it: ``num_convs=1, concat_input=False,
    dropout_ratio=0``.

    Refine Myself by Teaching Myself: Feature Refinement via Self-Knowledge Distillation, CVPR 2021.

    - paper: https://arxiv.org/abs/2103.08273
    - code: https://github.com/MingiJi/FRSKD

    Args:
        **kwargs (Any): Arguments of mmsegmentation's ``FCNHead``.

    Returns:
        FCNHead: mmsegmentation's head.

    Raises:
        ImportError: If mmsegmentation is not installed.

    Examples:
        >>> decode_head = dict(
        ...     type='mmkd_plugin.FCNHead3x3',
        ...     in_channels=64,
        ...     in_index=0,
        ...     channels=256,
        ...     num_convs=1,
        ...     concat_input=False,
        ...     dropout_ratio=0,
        ...     num_classes=21)
    """
    # Imported here: the registry loads this module for mmdetection too, without mmsegmentation.
    from mmseg.models.decode_heads import FCNHead

    head = FCNHead(**kwargs)
    head.conv_seg = nn.Conv2d(head.channels, head.out_channels, 3, padding=1)
    return head
