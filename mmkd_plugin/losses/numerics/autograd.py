"""Scalars whose gradient is computed by formula along with them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmkd_plugin.losses.numerics.compiling import Formula, with_fast_form
from mmkd_plugin.losses.numerics.precision import common_type, no_autocast, runs_in_float16
from mmkd_plugin.tracing import is_compiling


def keeps_its_gradient(formula: Formula) -> Formula:
    """Decorate a formula so that one map is all it keeps: its gradient, taken along with it.

    What the formula makes on its way is gone when the forward pass is over. torch.compile, which
    decides by itself what to keep, traces the formula.

    Args:
        formula (Callable): Takes a map of the student, one of the teacher and whatever else there
            is; returns a scalar.

    Returns:
        Callable: The same, which can be differentiated once.
    """

    @functools.wraps(formula)
    def run(student: Tensor, teacher: Tensor, *others: Any, **options: Any) -> Tensor:
        if not (student.requires_grad and torch.is_grad_enabled()):
            return formula(student, teacher, *others, **options)

        def compute(x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                leaf = x.to(common_type(student, teacher)).requires_grad_()
                value = formula(leaf, teacher, *others, **options)
                (gradient,) = torch.autograd.grad(value, leaf)
            return value.detach(), gradient

        with no_autocast(student.device.type):
            return with_gradient(lambda x: compute(x.detach()), student)

    return with_fast_form(run)(formula)


def _keeping_gradients(
    compute: Callable[..., Tensor], *maps: Tensor, weights: Iterable[Tensor] = ()
) -> Tensor:
    learning = [x for x in weights if x.requires_grad]
    seen = [x for x in maps if x.requires_grad]
    if not (seen or learning) or not torch.is_grad_enabled() or _scaled_later(maps):
        return compute(*maps)

    def both(*_: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_(x.requires_grad) for x in maps]
            value = compute(*leaves)
            wanted = [*(x for x in leaves if x.requires_grad), *learning]
            return value.detach(), *torch.autograd.grad(value, wanted, allow_unused=True)

    return with_gradients(both, *seen, *learning)


def _scaled_later(maps: Sequence[Tensor]) -> bool:
    """Whether float16 needs the factor of a gradient scaler, which comes with the backward pass."""
    half = any(x.dtype is torch.float16 for x in maps)
    return half or runs_in_float16(maps[0].device.type)


@with_fast_form(_keeping_gradients)
def keeping_gradients(
    compute: Callable[..., Tensor], *maps: Tensor, weights: Iterable[Tensor] = ()
) -> Tensor:
    """``compute(*maps)``, of which only the gradients are kept, those of maps and of weights.

    They are taken at once, so all that the modules of a loss make on their way is gone when the
    forward pass is over. torch.compile decides by itself what to keep, and float16 has to wait for
    the factor of the gradient scaler: there ``compute`` runs as it is.

    Args:
        compute (Callable): Takes the maps; returns a scalar.
        maps (Tensor): What the scalar is differentiated by, of any floating-point type.
        weights (Iterable[Tensor]): Parameters that ``compute`` uses. Defaults to none.

    Returns:
        Tensor: The scalar. It can be differentiated once.
    """
    return compute(*maps)


def with_gradient(compute: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """A scalar whose gradient is computed along with it, by formula, and is all that is saved.

    Args:
        compute (Callable): Takes ``x`` and returns the scalar and its gradient with respect to
            ``x``. Nothing in it is recorded.
        x (Tensor): Of any floating-point type; that of the gradient may be wider.

    Returns:
        Tensor: The scalar. It can be differentiated once.
    """
    return with_gradients(compute, x)


def with_gradients(compute: Callable[..., tuple[Tensor | None, ...]], *inputs: Tensor) -> Tensor:
    """As :func:`with_gradient`, with the gradient with respect to each of several tensors.

    A gradient may be None for a tensor that does not want one.
    """
    with torch.no_grad():
        value, *gradients = compute(*inputs)
    return KnownGradients.apply(value, *inputs, *gradients)


class KnownGradients(torch.autograd.Function):
    """See :func:`with_gradients`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *tensors: Tensor | None) -> Tensor:
        inputs, gradients = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [x.dtype for x in inputs]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        found, kept = [], _graph_is_kept()
        as_it_is = not kept and grad.device.type == 'cpu' and grad.item() == 1  # no need to wait
        for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes):
            if gradient is not None:
                if not as_it_is:
                    gradient = gradient * grad if kept else gradient.mul_(grad)
                gradient = gradient.to(dtype)
            found.append(gradient)
        return None, *found, *[None] * len(found)


def refuse_second_derivative() -> None:
    """For the backward pass of a function whose gradient cannot be differentiated.

    ``once_differentiable`` complains only where the incoming gradient is differentiable itself.

    Raises:
        RuntimeError: If a graph of the gradient is wanted.
    """
    if torch.is_grad_enabled() and not is_compiling():
        raise RuntimeError('this loss has no second derivative: leave create_graph=True out')


def _graph_is_kept() -> bool:
    """Whether another backward pass may need what was saved. PyTorch's compiled code asks too."""
    asked = getattr(torch._C._autograd, '_get_current_graph_task_keep_graph', None)
    return is_compiling() or asked is None or asked()
