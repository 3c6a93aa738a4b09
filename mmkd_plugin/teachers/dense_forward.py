"""Dense forward: runs a model's features and dense heads, without losses, assigners and NMS."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmkd_plugin.taps import Tap


def heads_of(model: nn.Module, taps: Sequence[Tap], owner: str) -> list[str] | None:
    """Finds the heads to call on the features for some taps.

    Args:
        model (nn.Module): The model.
        taps (Sequence[Tap]): The taps to read.
        owner (str): Name of the model in the error.

    Returns:
        list[str] | None: Names of the heads, None if the model has to run as a whole in
        ``mode='tensor'``.

    Raises:
        ValueError: If a tap lies in the second stage of a detector.
    """
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
    """Runs the features of a model and then some heads; hooks read the maps.

    Args:
        model (nn.Module): The model.
        inputs (Tensor): Images ``(N, C, H, W)``, normalised for the model.
        data_samples (list, optional): Their data samples.
        heads (list[str], optional): The heads, as :func:`heads_of` returns them. None runs the
            model as a whole in ``mode='tensor'``.
    """
    if heads is None:
        model(inputs, data_samples, mode='tensor')
        return
    features = model.extract_feat(inputs)
    for name in heads:
        head = getattr(model, name)
        if not isinstance(head, nn.ModuleList):
            _call(head, features, data_samples)
        elif name == 'decode_head':  # a cascade: each head refines the output of the previous one
            output = head[0](features)
            for stage in head[1:]:
                output = stage(features, output)
        else:
            for branch in head:
                branch(features)


def _call(head: nn.Module, features: Any, data_samples: list | None) -> None:
    """Calls a head with the features, and with the data samples if it requires them.

    Mask heads read the shapes of the images from the data samples.
    """
    needed = [
        parameter
        for parameter in inspect.signature(head.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    head(features, data_samples) if len(needed) > 1 else head(features)
