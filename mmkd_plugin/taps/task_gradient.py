"""The task loss of a model: its gradients at taps, and a factor on it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.taps import Maps, as_list

Key = TypeVar('Key', bound=Hashable)

# Float16 has no numbers below 6e-8, and the gradient of a mean over all pixels is of that size. So
# the loss is multiplied by this factor, and the gradients are divided by it in float32.
HALF_PRECISION_SCALE = 2.0**16


def task_gradients(loss: Tensor, maps: Mapping[Key, Maps], create_graph: bool) -> dict[Key, Maps]:
    """Computes the gradients of a task loss with respect to maps in one backward pass.

    Args:
        loss (Tensor): The task loss, a scalar, before any loss scaling.
        maps (Mapping[Any, Tensor | list[Tensor]]): Maps from which the loss was computed.
        create_graph (bool): Whether the gradients are differentiable.

    Returns:
        dict[Any, Tensor | list[Tensor]]: ``dL/dx`` for each key, in the shape of the maps. The
        gradients of maps in half precision are in float32. A map that the loss does not depend on
        gets zeros.
    """
    tensors = {key: as_list(value) for key, value in maps.items()}
    flat = [tensor for value in tensors.values() for tensor in value]
    gradients = gradients_of(loss, flat, create_graph)
    given = iter(
        torch.zeros_like(tensor) if gradient is None else gradient
        for gradient, tensor in zip(gradients, flat)
    )
    results = {key: [next(given) for _ in value] for key, value in tensors.items()}
    return {
        key: value[0] if isinstance(maps[key], Tensor) else value for key, value in results.items()
    }


def gradients_of(
    loss: Tensor,
    tensors: Sequence[Tensor],
    create_graph: bool = False,
    keep_graph: bool = False,
    scale: float = HALF_PRECISION_SCALE,
) -> list[Tensor | None]:
    """Computes the gradients of a loss with respect to tensors, also of half precision.

    Args:
        loss (Tensor): A scalar, before any loss scaling.
        tensors (Sequence[Tensor]): Tensors with an autograd graph.
        create_graph (bool): Whether the gradients are differentiable. Defaults to False.
        keep_graph (bool): Whether the loss is differentiated again later. Defaults to False.
        scale (float): Factor on the loss, divided out again, if a tensor is in half precision.
            Defaults to 65536.

    Returns:
        list[Tensor | None]: The gradients; those of tensors in half precision are in float32. None
        for a tensor that the loss does not depend on.
    """
    scale = scale if any(is_half(tensor) for tensor in tensors) else 1.0
    gradients = torch.autograd.grad(
        loss * scale,
        tensors,
        create_graph=create_graph,
        retain_graph=create_graph or keep_graph,
        allow_unused=True,
    )
    return [None if gradient is None else _unscaled(gradient, scale) for gradient in gradients]


def is_half(tensor: Tensor) -> bool:
    """Whether a tensor is in half precision."""
    return tensor.dtype in (torch.float16, torch.bfloat16)


def _unscaled(gradient: Tensor, scale: float) -> Tensor:
    if scale == 1.0:
        return gradient
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / scale


def once_only(loss: Tensor, maps: Maps) -> str | None:
    """Finds an operation between maps and a loss that cannot be differentiated twice.

    Compiled operations of mmcv and SyncBatchNorm are such operations. torch has no second
    derivative of them, and does not always raise an error.

    Args:
        loss (Tensor): The task loss.
        maps (Tensor | list[Tensor]): Maps from which the loss was computed.

    Returns:
        str | None: Name of the operation, None if there is none.
    """
    ends = {tensor.grad_fn for tensor in as_list(maps)}
    seen, queue = set(ends), [loss.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        forward = getattr(node, '_forward_cls', None)
        if forward is not None and (
            hasattr(forward.backward, '__wrapped__') or forward.__name__ == 'SyncBatchNorm'
        ):
            return forward.__name__
        queue += [following for following, _ in node.next_functions]
    return None


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Makes mmdet's focal losses take their plain PyTorch path inside the block.

    On a GPU they call a compiled operation without a second derivative, unless their targets are
    one-hot. So the targets are made one-hot.

    Args:
        model (nn.Module): The model that computes its loss inside the block.
    """
    handles = [
        module.register_forward_pre_hook(_one_hot, with_kwargs=True)
        for module in model.modules()
        if _is_focal_loss(module)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_focal_loss(module: nn.Module) -> bool:
    return any(
        base.__name__ == 'FocalLoss' and base.__module__.startswith('mmdet.')
        for base in type(module).__mro__
    )


def _one_hot(_: nn.Module, args: Sequence, kwargs: dict) -> tuple[tuple, dict] | None:
    given = dict(zip(('pred', 'target'), args)) | kwargs
    pred, target = given['pred'], given['target']
    if pred.dim() == target.dim():
        return None
    classes = pred.size(1)
    given['target'] = F.one_hot(target, num_classes=classes + 1)[:, :classes]
    rest = dict(zip(('weight', 'avg_factor', 'reduction_override'), args[2:]))
    return (), given | rest


def scaled_losses(losses: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Multiplies the losses of a model by a factor.

    Args:
        losses (Mapping[str, Any]): The result of ``model.loss``: tensors or lists of tensors.
        factor (float): The factor.

    Returns:
        dict[str, Any]: The entries whose name contains ``'loss'`` times the factor; all others,
        such as an accuracy, as they are.
    """
    return {
        key: _scaled(value, factor) if 'loss' in key else value for key, value in losses.items()
    }


def _scaled(value: Any, factor: float) -> Any:
    return value * factor if isinstance(value, Tensor) else [item * factor for item in value]
