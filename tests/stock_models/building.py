"""Small models from their configs, alone or in a Distiller, and what they are fed."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmkd_plugin.taps.example import example_batch


def build(config: dict) -> nn.Module:
    """Builds a model as a runner would, with the scope that its dict names."""
    config = ConfigDict(config)
    with DefaultScope.overwrite_default_scope(config.pop('_scope_', None)):
        return MODELS.build(config)


def distiller(
    student: dict, teacher: dict | list, distill: dict, seed: int = 0, **kwargs: Any
) -> nn.Module:
    """A Distiller around small models; a teacher given as a model dict gets random weights.

    ``kwargs`` are other keys, such as a ``type`` that takes the place of the Distiller.
    """
    torch.manual_seed(seed)
    if isinstance(teacher, dict) and not {'config', 'tap', 'path'} & set(teacher):
        teacher = dict(config=teacher, checkpoint=None)
    config = dict(
        _scope_=student['_scope_'],
        type='mmkd_plugin.Distiller',
        student=student,
        teacher=teacher,
        distill=distill,
    )
    return build({**config, **kwargs})


def batch(model: nn.Module, size: int = 2, seed: int = 0) -> tuple[Tensor, list]:
    """Images and labels for a model, ``size`` times a made-up one with noise of its own."""
    torch.manual_seed(seed)
    inputs, samples = example_batch(getattr(model, 'student', model), torch.device('cpu'))
    inputs = torch.rand(size, *inputs.shape[1:]) * 4 - 2
    return inputs, [samples[0].clone() for _ in range(size)]


def calls_of(module: nn.Module) -> list[tuple[tuple, dict]]:
    """A list to which each call of a module adds what it is given: positional, and by name."""
    calls: list[tuple[tuple, dict]] = []
    module.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    return calls


def has_gradient(parameter: Tensor) -> bool:
    """Whether backward has reached a parameter with more than zeros."""
    return parameter.grad is not None and bool(parameter.grad.any())


def cwd(**kwargs: Any) -> dict:
    """A channel-wise loss, for terms whose loss does not matter."""
    return dict(type='mmkd_plugin.ChannelWiseLoss', **kwargs)
