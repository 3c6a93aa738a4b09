"""Grad-CAM of one class in one image, written out in float64."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.taps import Tap, find_module
from tests import stock_models


def loaded(weighted: dict) -> nn.Module:
    """The model of a ``teacher``."""
    model = stock_models.build(weighted['config']).eval()
    model.load_state_dict(torch.load(weighted['checkpoint'])['state_dict'])
    return model.double()


def alone(model: nn.Module, batch: Any, i: int) -> Tensor:
    """One image of a batch, preprocessed."""
    data = {key: batch[key][i : i + 1] for key in ('inputs', 'data_samples')}
    return model.data_preprocessor(data, False)['inputs'].double()


def outputs(model: nn.Module, inputs: Tensor, *names: str) -> list[list[Tensor]]:
    """Returns what modules output, for each of their runs."""
    seen: list[list[Tensor]] = [[] for _ in names]
    handles = [
        find_module(model, Tap(name), 'the model').register_forward_hook(
            lambda _, __, output, kept=kept: kept.append(output)
        )
        for name, kept in zip(names, seen, strict=True)
    ]
    model(inputs, None, mode='tensor')
    for handle in handles:
        handle.remove()
    return seen


def seen(model: nn.Module, inputs: Tensor, scores: str, c: int, thr: float) -> list[Tensor]:
    """Where a segmentor (softmax) or a detector (sigmoid, one anchor) sees a class."""
    (maps,) = outputs(model, inputs, scores)
    if scores.startswith('decode_head'):
        return [x.argmax(1) == c for x in maps]
    return [x[:, c].sigmoid() > thr for x in maps]


def grad_cam(
    model: nn.Module, inputs: Tensor, tap: str, scores: str, c: int, positions: list[Tensor]
) -> Tensor:
    """The map (H, W) that explains the scores of a class at some positions."""
    (feature,), scored = outputs(model, inputs, tap, scores)
    score = sum((x[:, c] * at).sum() for x, at in zip(scored, positions, strict=True))
    (gradient,) = torch.autograd.grad(score, feature)
    cam = (gradient.mean((2, 3), keepdim=True) * feature).sum(1, keepdim=True).clamp(min=0)
    cam = F.interpolate(cam, inputs.shape[2:], mode='bilinear', align_corners=False)
    return cam[0, 0].detach()
