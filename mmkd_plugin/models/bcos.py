"""B-cos layers: a network of them is a linear map of its input, with weights that explain it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mmkd_plugin.losses.numerics.checks import finite_number
from mmkd_plugin.registry import MODELS

#: The authors' stabiliser: under the root of the patch norm, and on the cosine if B is not 2.
EPS = 1e-6


# The mathematics ----------------------------------------------------------------------------------


def unit_filters(weight: Tensor) -> Tensor:
    """Scales the filters of a convolution to norm 1.

    Args:
        weight (Tensor): ``(out, in, kH, kW)``.

    Returns:
        Tensor: Of the same shape and type; the norm is taken in float32 or wider.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    norm = torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True, dtype=dtype)
    return (weight / norm).to(weight.dtype)


@contextmanager
def widened(x: Tensor) -> Iterator[Tensor]:
    """Gives ``x`` in float32 or wider, while the backward pass keeps ``x`` alone.

    Inside the ``with`` block, the given tensor is the only one that autograd may save.

    Args:
        x (Tensor): A tensor of floating point.

    Yields:
        Tensor: ``x`` in float32, or in its own type if that is wider.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    if dtype == x.dtype or not x.requires_grad:
        yield x.to(dtype)
    else:  # the hooks live as long as the graph, so they must not refer to the copy
        with saved_tensors_hooks(lambda _: x.detach(), lambda kept: kept.to(dtype)):
            yield x.to(dtype)


def patch_norms(
    x: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int = 1,
) -> Tensor:
    """Norms of the patches that the filters of a convolution see, ``sqrt(sum of x² + 1e-6)``.

    The squares are summed over the channels first, so the window slides over one map.

    Args:
        x (Tensor): ``(N, C, H, W)``.
        kernel_size (tuple[int, int]): Height and width of the filters.
        stride (tuple[int, int]): Stride of the convolution.
        padding (tuple[int, int]): Zeros on each side.
        dilation (tuple[int, int]): Dilation of the convolution.
        groups (int): Groups of the convolution. Defaults to 1.

    Returns:
        Tensor: ``(N, groups, H', W')``, in float32 or wider.
    """
    with widened(x) as wide:
        squares = (wide * wide).unflatten(1, (groups, -1)).sum(2)
    if dilation == (1, 1) and all(2 * p <= k for p, k in zip(padding, kernel_size)):
        sums = F.avg_pool2d(squares, kernel_size, stride, padding, divisor_override=1)
    else:  # pooling has no dilation and less padding; the copies of `groups` maps are small
        size = [
            (side + 2 * p - d * (k - 1) - 1) // s + 1
            for side, k, s, p, d in zip(x.shape[2:], kernel_size, stride, padding, dilation)
        ]
        columns = F.unfold(squares, kernel_size, dilation, padding, stride)
        sums = columns.unflatten(1, (groups, -1)).sum(2).unflatten(2, size)
    return (sums + EPS).sqrt()


def dynamic_scale(linear: Tensor, norm: Tensor, b: float) -> Tensor:
    """``|cos|^(B-1)``, with the cosine between filters of norm 1 and the patches that they see.

    Args:
        linear (Tensor): Responses of the filters, ``(N, C, H, W)``.
        norm (Tensor): Norms of the patches, ``(N, 1, H, W)`` or ``(N, C, H, W)``.
        b (float): The exponent B.

    Returns:
        Tensor: ``(N, C, H, W)``.
    """
    cos = linear.abs() / norm
    return cos if b == 2 else (cos + EPS) ** (b - 1)


class _Scaled(torch.autograd.Function):
    """``linear * dynamic_scale``, whose backward pass can hold the scale constant.

    The layer's ``held`` decides when the backward pass runs, so one forward serves both the
    explanation and the training. The backward pass computes the scale again: it is as large as the
    map.
    """

    @staticmethod
    def forward(ctx: Any, linear: Tensor, norm: Tensor, layer: BcosConv2d) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(linear, norm)
        return (linear * dynamic_scale(linear, norm, layer.b)).to(linear.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (linear, norm), b = ctx.saved_tensors, ctx.layer.b
        grad = grad * dynamic_scale(linear, norm, b)
        if ctx.layer.held:
            return grad.to(linear.dtype), None, None
        if b == 2:
            power = 1
        else:  # the exponent of |cos| in the scale, with the stabiliser
            cos = linear.abs() / norm
            power = (b - 1) * cos / (cos + EPS)
        of_norm = None
        if ctx.needs_input_grad[1]:
            of_norm = -(grad * linear * power / norm).sum_to_size(norm.shape)
        return (grad * (1 + power)).to(linear.dtype), of_norm, None


class _Product(torch.autograd.Function):
    """``x * factor``, whose backward pass can hold the factor constant; see :class:`_Scaled`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, layer: DynamicLinear) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x, factor)
        return x * factor.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, factor = ctx.saved_tensors
        of_x = grad * factor.to(grad.dtype)
        return of_x, None if ctx.layer.held else (grad * x).sum_to_size(factor.shape), None


# Layers -------------------------------------------------------------------------------------------


class DynamicLinear(nn.Module):
    """Base of the layers that multiply their input by a function of it.

    :func:`explanation_mode` sets ``held``.
    """

    #: Whether the backward pass holds that function constant.
    held = False


@MODELS.register_module()
class BcosConv2d(DynamicLinear, nn.Conv2d):
    """B-cos convolution: ``|cos(x, w)|^(B-1) · ŵᵀx`` for each filter and patch, without a bias.

    ŵ is a filter scaled to norm 1, so a patch gets a strong response only if it points in the
    direction of the filter. Heads and necks of mmseg and mmdet take it as
    ``conv_cfg=dict(type='mmkd_plugin.BcosConv2d')``.

    B-cos Networks: Alignment is All We Need for Interpretability, CVPR 2022 (in its second version:
    no scale, weights of norm 1).

    - paper: https://arxiv.org/abs/2205.10268, https://arxiv.org/abs/2306.10898
    - code: https://github.com/B-cos/B-cos-v2

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        kernel_size (int | tuple[int, int]): Size of the filters.
        stride (int | tuple[int, int]): Stride. Defaults to 1.
        padding (int | tuple[int, int]): Zeros on each side. Defaults to 0.
        dilation (int | tuple[int, int]): Dilation. Defaults to 1.
        groups (int): Groups. Defaults to 1.
        bias (bool): Has no effect; the builders of mmcv pass it. Defaults to False.
        b (float): The exponent B, from 1 (a convolution with filters of norm 1) on. Defaults to 2.
        max_out (int): Filters for each output channel; the largest response is taken. Defaults to
            1.

    Shape:
        - input: ``(N, in_channels, H, W)``.
        - output: ``(N, out_channels, H', W')``, in the precision of a convolution.

    Raises:
        TypeError: If ``b`` is not a number.
        ValueError: If ``b`` or ``max_out`` is below 1, or ``max_out`` is not a whole number.

    Examples:
        >>> import torch
        >>> conv = BcosConv2d(6, 16, 3, padding=1)
        >>> conv(torch.rand(2, 6, 32, 32)).shape
        torch.Size([2, 16, 32, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        b: float = 2,
        max_out: int = 1,
    ) -> None:
        if finite_number('b', b) < 1:
            raise ValueError(f'b must be at least 1, got {b}')
        if not isinstance(max_out, int) or max_out < 1:
            raise ValueError(f'max_out must be a whole number from 1 on, got {max_out!r}')
        super().__init__(
            in_channels,
            out_channels * max_out,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias=False,
        )
        self.out_channels, self.b, self.max_out = out_channels, b, max_out

    def forward(self, x: Tensor) -> Tensor:
        """Computes the responses.

        Args:
            x (Tensor): ``(N, in_channels, H, W)``.

        Returns:
            Tensor: ``(N, out_channels, H', W')``.
        """
        linear = self._conv_forward(x, unit_filters(self.weight), None)
        if self.max_out > 1:
            linear = linear.unflatten(1, (self.out_channels, self.max_out)).max(2).values
        if self.b == 1:
            return linear
        norm = patch_norms(
            x, self.kernel_size, self.stride, self.padding, self.dilation, self.groups
        )
        if self.groups > 1:
            norm = norm.repeat_interleave(self.out_channels // self.groups, 1)
        if linear.requires_grad:
            return _Scaled.apply(linear, norm, self)
        return (linear * dynamic_scale(linear, norm, self.b)).to(linear.dtype)

    def extra_repr(self) -> str:
        """The arguments, with B, and the filters of an output channel if there are several."""
        more = f', max_out={self.max_out}' if self.max_out > 1 else ''
        return f'{super().extra_repr()}, b={self.b}{more}'

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Accepts the authors' checkpoints too, which keep the filters in a submodule."""
        if f'{prefix}linear.weight' in state_dict:
            state_dict[f'{prefix}weight'] = state_dict.pop(f'{prefix}linear.weight')
        super()._load_from_state_dict(state_dict, prefix, *args)


@MODELS.register_module()
class BcosBatchNorm2d(DynamicLinear):
    """Batch norm without a mean and a bias: ``x · weight / sqrt(var(x) + eps)``.

    The variance is around the mean, as in a batch norm: in training the variance of the batch, in
    evaluation its running average (of the biased variance, as in the authors' code). Models take it
    as ``norm_cfg=dict(type='mmkd_plugin.BcosBatchNorm2d')``. It is not a subclass of PyTorch's
    batch norm, because conversion to SyncBN and fusion with convolutions would subtract the mean
    again.

    B-cos Alignment for Inherently Interpretable CNNs and Vision Transformers, 2023.

    - paper: https://arxiv.org/abs/2306.10898
    - code: https://github.com/B-cos/B-cos-v2 (``BatchNormUncentered2d``)

    Args:
        num_features (int): Channels, C.
        eps (float): Number added to the variance. Defaults to 1e-5.
        momentum (float): Weight of a new batch in the running average. Defaults to 0.1.

    Shape:
        - input: ``(N, C, H, W)``.
        - output: ``(N, C, H, W)``.

    Examples:
        >>> import torch
        >>> norm = BcosBatchNorm2d(8)
        >>> norm(5 + torch.randn(4, 8, 16, 16)).mean().round()  # the mean stays
        tensor(5., grad_fn=<RoundBackward0>)
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.register_buffer('running_var', torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Scales maps.

        Args:
            x (Tensor): ``(N, C, H, W)``.

        Returns:
            Tensor: ``(N, C, H, W)``, in the precision of the input.
        """
        variance = self.running_var
        if self.training:
            with widened(x) as wide:
                variance = wide.var((0, 2, 3), unbiased=False)
            with torch.no_grad():
                self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
        factor = (variance + self.eps).rsqrt()[:, None, None]
        x = _Product.apply(x, factor, self) if factor.requires_grad else x * factor.to(x.dtype)
        return x * self.weight[:, None, None].to(x.dtype)

    def extra_repr(self) -> str:
        """The arguments."""
        return f'{self.num_features}, eps={self.eps}, momentum={self.momentum}'

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Accepts the authors' checkpoints too, with the buffers that their batch norm ignores."""
        for name in ('running_mean', 'num_batches_tracked'):
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)


# Explanations -------------------------------------------------------------------------------------


@contextmanager
def explanation_mode(model: nn.Module) -> Iterator[None]:
    """Makes gradients the dynamic linear weights of a model inside the ``with`` block.

    A backward pass inside the block holds the scale of each B-cos convolution and the variance of
    each :class:`BcosBatchNorm2d` constant, so ``d y / d x`` is the row of W(x) that gave
    ``y = W(x) x``. The forward may run anywhere: the mode changes neither its values nor its
    running statistics (call ``model.eval()`` to keep those). With ``create_graph=True`` the weights
    depend on all parameters, through the scales as well, as in e2KD's code. A training step
    therefore needs one forward, and calls ``loss.backward()`` after the block.

    Args:
        model (nn.Module): Any module; its layers other than B-cos layers behave as always.

    Examples:
        >>> import torch
        >>> conv, x = BcosConv2d(6, 1, 3).double(), torch.rand(1, 6, 3, 3, dtype=torch.float64)
        >>> y = conv(x.requires_grad_())
        >>> with explanation_mode(conv):
        ...     weights, = torch.autograd.grad(y, x)
        >>> torch.allclose((weights * x).sum(), y)
        True
    """
    layers = [module for module in model.modules() if isinstance(module, DynamicLinear)]
    before = [layer.held for layer in layers]
    for layer in layers:
        layer.held = True
    try:
        yield
    finally:
        for layer, held in zip(layers, before):
            layer.held = held


#: Activations whose gradient is the weight that they multiply by.
PIECEWISE_LINEAR = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU)
ACTIVATION_MODULES = ('torch.nn.modules.activation', 'mmcv.cnn.bricks.activation')
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)


def not_dynamic_linear(model: nn.Module) -> list[str]:
    """Names the modules that make the output of a model differ from ``W(x) x``.

    They have a bias, subtract a mean, or are smooth functions (GELU, sigmoid, attention). A ReLU is
    not one of them: it multiplies by 0 or 1, and its gradient is that factor. A bias of the last
    convolution is one of them: no pixel explains it. Functions that are not modules, such as a
    softmax in a ``forward``, are not found.

    Args:
        model (nn.Module): A model, or a part of one.

    Returns:
        list[str]: Names in the model, in its order.

    Examples:
        >>> from torch import nn
        >>> not_dynamic_linear(nn.Sequential(BcosConv2d(6, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)))
        ['2']
    """
    return [name for name, module in model.named_modules() if not _is_dynamic_linear(module)]


def _is_dynamic_linear(module: nn.Module) -> bool:
    return not (
        any('bias' in name for name, _ in module.named_parameters(recurse=False))
        or isinstance(module, NORMS)
        or (
            type(module).__module__.startswith(ACTIVATION_MODULES)
            and not isinstance(module, PIECEWISE_LINEAR)
        )
    )
