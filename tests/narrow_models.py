"""Models of stock configs an eighth as wide, or as deep as they have stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: What the widths of the parts behind a backbone are called.
WIDTHS = (
    'in_channels', 'out_channels', 'channels', 'feat_channels', 'point_feat_channels',
    'fc_out_channels', 'conv_out_channels', 'c1_in_channels', 'c1_channels',
)  # fmt: skip


def narrow(model: Any) -> Any:
    """Make a segmentor or a detector an eighth as wide; its modules keep their names."""
    backbone, eighth = model.backbone, (lambda width: width // 8)
    if 'MobileNetV2' in backbone.type:
        backbone.widen_factor = 1 / 8
        eighth = rounded_eighth
    elif backbone.type in ('MobileNetV3', 'HRNet', 'PIDNet', 'DDRNet'):
        return model  # these come in one width, or with heads that repeat those of the branches
    elif 'ConvNeXt' in backbone.type:
        backbone.arch = dict(depths=[3, 3, 27, 3], channels=[16, 32, 64, 128])
    elif 'widen_factor' in backbone:
        backbone.widen_factor /= 8
    elif 'embed_dims' in backbone:
        backbone.embed_dims //= 8
    else:
        if 'groups' in backbone:
            backbone.groups //= 8
        for key in ('base_channels', 'stem_channels'):
            backbone[key] = backbone.get(key, 64) // 8  # a ResNet's own default
    for part in model:
        if part in ('neck', 'decode_head', 'auxiliary_head', 'bbox_head', 'rpn_head', 'roi_head'):
            narrow_part(model[part], eighth)
    return model


def narrow_part(part: dict, eighth: Callable[[int], int]) -> None:
    """The same for a neck or a head, and the parts in it."""
    for key, value in part.items():
        stages = [value] if isinstance(value, dict) else value
        if isinstance(stages, list) and isinstance(stages[0], dict):  # a cascade has several
            for stage in stages:
                narrow_part(stage, eighth)
        elif key in WIDTHS:
            part[key] = [*map(eighth, value)] if isinstance(value, list) else eighth(value)


def rounded_eighth(width: int) -> int:
    """An eighth as MobileNetV2 rounds it: to a multiple of 8."""
    return max(8, (width // 8 + 4) // 8 * 8)


def shallow(model: Any) -> Any:
    """Make a model with a Swin Transformer as deep as it has stages."""
    model.backbone.depths = [1, 1, 1, 1]
    return model
