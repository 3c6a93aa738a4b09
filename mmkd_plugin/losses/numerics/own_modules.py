"""Losses that learn: their modules, one for each map, and how these are run."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def run(module: nn.Module, x: Tensor) -> Tensor:
    """Call a module with a map of any floating-point type.

    The map gets the type of the weights. Under autocast the layers run in its type, as those of the
    student and of the connectors do.
    """
    return module(x.to(next(module.parameters()).dtype))


def check_set_up(modules: Sequence[nn.Module], maps: Sequence[Tensor]) -> None:
    """Refuse maps for which there are no modules.

    Raises:
        ValueError: If there are not as many modules as maps.
    """
    if len(modules) != len(maps):
        raise ValueError(
            f'there are modules for {len(modules)} maps, and {len(maps)} maps: call '
            'setup(student_channels, teacher_channels) first, with one number for each map'
        )


def normalised(norm: nn.Module, x: Tensor) -> Tensor:
    """BN, which needs two values of a channel: a single one gets the running statistics."""
    if isinstance(norm, nn.BatchNorm2d) and norm.training and x.numel() == x.shape[1]:
        mean, var = norm.running_mean, norm.running_var
        return F.batch_norm(x, mean, var, norm.weight, norm.bias, eps=norm.eps)
    return norm(x)


def generator(channels: int) -> nn.Sequential:
    """The network that generates a teacher's map: 3×3 convolution, ReLU, 3×3 convolution."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1),
    )
