"""A model's features and dense heads alone: never a loss, an assignment or an NMS."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmkd_plugin.taps import Tap


def heads_of(model: nn.Module, taps: Sequence[Tap], owner: str) -> list[str] | None:
    """The heads to call on the features, or None to run ``mode='tensor'`` as it comes."""
    if not hasattr(model, 'extract_feat') or hasattr(model, 'forward_transformer'):
        return None
    heads = list(dict.fromkeys(tap.path.split('.')[0] for tap in taps))
    heads = [head for head in heads if head.endswith('head')]
    for tap in taps:
        if tap.path.split('.')[0] == 'roi_head':
            raise ValueError(
                f"{owner}: '{tap}' needs proposals of its own and their non-maximum suppression; "
                "a teacher gives features and dense logits only. Tap 'neck', or 'rpn_head'"
            )
    return heads


def dense_forward(
    model: nn.Module, inputs: Tensor, data_samples: list | None, heads: list[str] | None
) -> None:
    """Features, then the heads: never a loss, an assignment or an NMS."""
    if heads is None:
        model(inputs, data_samples, mode='tensor')
        return
    features = model.extract_feat(inputs)
    for name in heads:
        head = getattr(model, name)
        if not isinstance(head, nn.ModuleList):
            _call(head, features, data_samples)
        elif name == 'decode_head':  # a cascade: each head refines what the one before gave
            output = head[0](features)
            for stage in head[1:]:
                output = stage(features, output)
        else:
            for branch in head:
                branch(features)


def _call(head: nn.Module, features: Any, data_samples: list | None) -> None:
    """Mask heads want the data samples for their shapes; the others take features alone."""
    needed = [
        parameter
        for parameter in inspect.signature(head.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    head(features, data_samples) if len(needed) > 1 else head(features)
