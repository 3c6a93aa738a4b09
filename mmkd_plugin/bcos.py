"""B-cos layers: a network of them is, for each input, a linear map that can be looked at."""

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

#: The authors' stabilisers: under the root of the patch norm, and on the cosine where B is not 2.
EPS = 1e-6


# The mathematics ----------------------------------------------------------------------------------


def unit_filters(weight: Tensor) -> Tensor:
    """Filters ``(out, in, kH, kW)`` scaled to norm 1, measured at least in float32."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    norm = torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True, dtype=dtype)
    return (weight / norm).to(weight.dtype)


@contextmanager
def widened(x: Tensor) -> Iterator[Tensor]:
    """Gives ``x`` at least in float32, of which the way back keeps no more than ``x``.

    What the block computes may save nothing but what it is given.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    if dtype == x.dtype or not x.requires_grad:
        yield x.to(dtype)
    else:  # the hooks live as long as the graph, so they must not know the copy
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

    The squares are summed over the channels first, so that the window slides over one map alone.

    Args:
        x (Tensor): ``(N, C, H, W)``.
        kernel_size, stride, padding, dilation (tuple[int, int]): Those of the convolution.
        groups (int): Those of the convolution. Defaults to 1.

    Returns:
        Tensor: ``(N, groups, H', W')``, at least in float32.
    """
    with widened(x) as wide:
        squares = (wide * wide).unflatten(1, (groups, -1)).sum(2)
    if dilation == (1, 1) and all(2 * p <= k for p, k in zip(padding, kernel_size)):
        sums = F.avg_pool2d(squares, kernel_size, stride, padding, divisor_override=1)
    else:  # no pooling is dilated or padded as wide; of `groups` maps the copies are small
        size = [
            (side + 2 * p - d * (k - 1) - 1) // s + 1
            for side, k, s, p, d in zip(x.shape[2:], kernel_size, stride, padding, dilation)
        ]
        columns = F.unfold(squares, kernel_size, dilation, padding, stride)
        sums = columns.unflatten(1, (groups, -1)).sum(2).unflatten(2, size)
    return (sums + EPS).sqrt()


def dynamic_scale(linear: Tensor, norm: Tensor, b: float) -> Tensor:
    """``|cos|^(B-1)`` of filters of norm 1 and the patches that they see.

    Args:
        linear (Tensor): What the filters gave, ``(N, C, H, W)``.
        norm (Tensor): Norms of the patches, ``(N, 1, H, W)`` or ``(N, C, H, W)``.
        b (float): B.
    """
    cos = linear.abs() / norm
    return cos if b == 2 else (cos + EPS) ** (b - 1)


class _Scaled(torch.autograd.Function):
    """``linear * dynamic_scale``, whose backward may take the scale for a constant.

    Which it does is decided when the backward runs, so that one forward can be both explained and
    learnt from. The scale is computed again there: it is as large as the map.
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
        else:  # of |cos| in the scale, as the stabiliser leaves it
            cos = linear.abs() / norm
            power = (b - 1) * cos / (cos + EPS)
        of_norm = None
        if ctx.needs_input_grad[1]:
            of_norm = -(grad * linear * power / norm).sum_to_size(norm.shape)
        return (grad * (1 + power)).to(linear.dtype), of_norm, None


class _Product(torch.autograd.Function):
    """``x * factor``, whose backward may take the factor for a constant; see `_Scaled`."""

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
    """What a layer is that multiplies its input by a function of it; see `explanation_mode`."""

    #: Whether that function counts as a constant in a backward pass.
    held = False


@MODELS.register_module()
class BcosConv2d(DynamicLinear, nn.Conv2d):
    """B-cos convolution: ``|cos(x, w)|^(B-1) · ŵᵀx`` for each filter and patch, without a bias.

    ŵ is a filter scaled to norm 1, so only patches that point its way give much. For heads and
    necks of mmseg and mmdet it is ``conv_cfg=dict(type='mmkd_plugin.BcosConv2d')``.

    Böhle et al., B-cos Networks: Alignment is All We Need for Interpretability, CVPR 2022, as in
    its second version (no scale, weights of norm 1).

    - paper: https://arxiv.org/abs/2205.10268, https://arxiv.org/abs/2306.10898
    - code: https://github.com/B-cos/B-cos-v2

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        kernel_size (int | tuple[int, int]): Of the filters.
        stride (int | tuple[int, int]): Defaults to 1.
        padding (int | tuple[int, int]): Zeros on either side. Defaults to 0.
        dilation (int | tuple[int, int]): Defaults to 1.
        groups (int): Defaults to 1.
        bias (bool): There never is one; the builders of mmcv ask for it. Defaults to False.
        b (float): B, from 1 (a convolution with filters of norm 1) on. Defaults to 2.
        max_out (int): Filters for each output channel, of which the largest response is taken.
            Defaults to 1.

    Shape:
        - input: (N, C, H, W).
        - output: (N, ``out_channels``, H', W'), in the precision of a convolution.

    Raises:
        TypeError: If ``b`` is not a number.
        ValueError: If ``b`` or ``max_out`` is below 1.

    Example:
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
        """Returns the responses, (N, out_channels, H', W')."""
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
        """Adds B and, where there are more than one, the filters of a channel."""
        more = f', max_out={self.max_out}' if self.max_out > 1 else ''
        return f'{super().extra_repr()}, b={self.b}{more}'

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Takes the authors' checkpoints too, where the filters are in a module of their own."""
        if f'{prefix}linear.weight' in state_dict:
            state_dict[f'{prefix}weight'] = state_dict.pop(f'{prefix}linear.weight')
        super()._load_from_state_dict(state_dict, prefix, *args)


@MODELS.register_module()
class BcosBatchNorm2d(DynamicLinear):
    """Batch norm that subtracts no mean and adds no bias: ``x · weight / sqrt(var(x) + eps)``.

    The variance is that of a batch norm, around the mean, in training of the batch and in
    evaluation a running average (of the biased variance, as the authors have it). As ``norm_cfg``
    it is ``dict(type='mmkd_plugin.BcosBatchNorm2d')``. It is no subclass of PyTorch's, since what
    looks for those (conversion to SyncBN, fusion with convolutions) would put the mean back in.

    Böhle et al., B-cos Alignment for Inherently Interpretable CNNs and Vision Transformers, 2023.

    - paper: https://arxiv.org/abs/2306.10898
    - code: https://github.com/B-cos/B-cos-v2 (``BatchNormUncentered2d``)

    Args:
        num_features (int): Channels.
        eps (float): Added to the variance. Defaults to 1e-5.
        momentum (float): Weight of a new batch in the running average. Defaults to 0.1.

    Shape:
        - input, output: (N, C, H, W).

    Example:
        >>> import torch
        >>> norm = BcosBatchNorm2d(8)
        >>> norm(5 + torch.randn(4, 8, 16, 16)).mean().round()  # a mean stays
        tensor(5., grad_fn=<RoundBackward0>)
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.register_buffer('running_var', torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the scaled maps, (N, C, H, W), in the precision of the input."""
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
        """Takes the authors' checkpoints too, with what their batch norm inherits and ignores."""
        for name in ('running_mean', 'num_batches_tracked'):
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)


# Explanations -------------------------------------------------------------------------------------


@contextmanager
def explanation_mode(model: nn.Module) -> Iterator[None]:
    """Makes gradients the dynamic linear weights of a model while the block runs.

    In a *backward* pass inside it, the scale of each B-cos convolution and the variance of each
    `BcosBatchNorm2d` are constants, so ``d y / d x`` is the row of W(x) that gave ``y = W(x) x``.
    It does not matter where the forward ran: the mode changes nothing about it, neither values nor
    what it does to running statistics (call ``model.eval()`` to leave those alone). With
    ``create_graph=True`` the weights depend on the parameters in full, through the scales as well,
    as in e2KD's code. So a training step needs one forward, and takes its ``loss.backward()`` after
    the block.

    Args:
        model (nn.Module): Any module; what is not B-cos in it stays as it is.

    Example:
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
    """Names of modules because of which ``W(x) x`` is not quite what a model gives.

    They have a bias, normalise by a mean, or bend their input smoothly (GELU, sigmoid, attention).
    A ReLU is not among them: it multiplies by 0 or 1, and its gradient is that factor. A bias of
    the last convolution is: it adds to the scores what no pixel explains. What is no module, such
    as a softmax in a ``forward``, is not seen.

    Args:
        model (nn.Module): A model, or a part of one.

    Returns:
        list[str]: Names in the model, in its order.

    Example:
        >>> from torch import nn
        >>> not_dynamic_linear(nn.Sequential(BcosConv2d(6, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)))
        ['2']
    """
    return [name for name, module in model.named_modules() if _offends(module)]


def _offends(module: nn.Module) -> bool:
    own = [name for name, value in module.named_parameters(recurse=False)]
    return (
        any('bias' in name for name in own)
        or isinstance(module, NORMS)
        or (
            type(module).__module__.startswith(ACTIVATION_MODULES)
            and not isinstance(module, PIECEWISE_LINEAR)
        )
    )
