"""The trial of a term's loss before training: a value and a gradient that can be trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn

from mmkd_plugin.health import TOO_LARGE
from mmkd_plugin.taps import Maps, as_list


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Restores the buffers of a module after the block.

    Args:
        module (nn.Module): The module, with all that is in it.
    """
    before = [
        (one, name, value, value.clone())
        for one in module.modules()
        for name, value in one._buffers.items()
        if value is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for one, name, value, copy in before:
                one._buffers[name] = value.copy_(copy)


def problem_of(compare: Callable[[Maps, Maps], Tensor], student: Maps, teacher: Maps) -> str | None:
    """What is wrong with a loss, on the maps of a dry forward and on random ones of their shapes.

    The maps of a dry forward alone are no proof: the weights behind them may still be raw memory.

    Args:
        compare (Callable): Gives the loss of maps of student and teacher.
        student (Maps): Maps of the student, ``(N, C, H, W)``.
        teacher (Maps): Maps of the teacher.

    Returns:
        str | None: Such as ``'is nan'``, or None if nothing is wrong.
    """
    if _problem(compare, student, teacher) is None:
        return None
    generator = torch.Generator().manual_seed(0)
    try:
        return _problem(compare, _random(student, generator), _random(teacher, generator))
    except (ValueError, RuntimeError):  # it wants maps of a special kind
        return None


def _problem(compare: Callable[[Maps, Maps], Tensor], student: Maps, teacher: Maps) -> str | None:
    if get_world_size() > 1:  # with gradients, a loss may wait for other processes
        with torch.no_grad():
            return _of_value(compare(student, teacher))
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in as_list(student)]
    with torch.enable_grad():
        loss = compare(leaves[0] if isinstance(student, Tensor) else leaves, teacher)
        if _of_value(loss) is not None or not loss.detach().any():
            return _of_value(loss)
        if not loss.requires_grad:
            return 'does not depend on the maps of the student'
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    given = [gradient for gradient in gradients if gradient is not None]
    if not any(gradient.any() for gradient in given):
        return 'gives the student no gradient'
    finite = all(torch.isfinite(gradient).all() for gradient in given)
    return None if finite else 'has a gradient that is not finite'


def _of_value(loss: Any) -> str | None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        is_map = isinstance(loss, Tensor)
        given = f'a tensor of shape {tuple(loss.shape)}' if is_map else f'a {type(loss).__name__}'
        raise ValueError(f'it returns {given}; expected one number, a tensor such as loss.mean()')
    value = abs(loss.item())
    return None if value < TOO_LARGE else f'is {loss.item():.3g}'


def _random(maps: Maps, generator: torch.Generator) -> Maps:
    made = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in as_list(maps)]
    return made[0] if isinstance(maps, Tensor) else made
