"""Parts that several of the small models have."""

from __future__ import annotations

from typing import Any

#: How mask classifiers are trained: points of masks, and the costs of a match.
MASK_POINTS = dict(num_points=64, oversample_ratio=3.0, importance_sample_ratio=0.75)

MASK_COSTS = [
    dict(type='ClassificationCost'),
    dict(type='CrossEntropyLossCost', use_sigmoid=True),
    dict(type='DiceCost', pred_act=True),
]
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def resnet(width: int = 8, depth: int = 18, kind: str = 'ResNet', **kwargs: Any) -> dict:
    """A ResNet with ``width`` channels in its first stage."""
    return dict(
        type=kind,
        depth=depth,
        base_channels=width,
        stem_channels=width,
        norm_cfg=dict(type='BN'),
        norm_eval=False,
        **kwargs,
    )
