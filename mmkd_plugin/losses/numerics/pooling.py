"""Pooling of maps, also where their sizes are symbols: while torch.compile traces.

There PyTorch's own poolings would be compiled anew for each size, or not at all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_plugin.tracing import is_compiling


def pool_to_common_size(a: Tensor, b: Tensor, pool: str = 'avg') -> tuple[Tensor, Tensor]:
    """Pool two maps to the lesser of their heights and the lesser of their widths.

    A map that has this size already is returned as it is; each is pooled where one is the higher
    and the other the wider of the two.

    Args:
        a (Tensor): (N, C_a, H_a, W_a).
        b (Tensor): (N, C_b, H_b, W_b).
        pool (str): ``'avg'`` or ``'max'``, adaptive. Defaults to ``'avg'``.

    Returns:
        tuple[Tensor, Tensor]: (N, C_a, H, W) and (N, C_b, H, W).
    """
    size = tuple(map(min, a.shape[2:], b.shape[2:]))
    return tuple(x if x.shape[2:] == size else adaptive_pool(x, size, pool) for x in (a, b))


def adaptive_pool(x: Tensor, size: tuple[int, int], pool: str) -> Tensor:
    """Pool (N, C, H, W) to a size, ``'avg'`` or ``'max'``, by windows of about equal sides."""
    if not is_compiling():
        return dict(avg=F.adaptive_avg_pool2d, max=F.adaptive_max_pool2d)[pool](x, size)
    for dim, new in zip((2, 3), size):
        old = x.shape[dim]
        x = pool_windows(x, dim, *_adaptive_windows(old, new, x.device), old // new + 2, pool)
    return x


def adaptive_shares(
    size: int, windows: int, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """An adaptive average-pooling along one side as a matrix, (windows, size); rows add up to 1."""
    return _shares(*_adaptive_windows(size, windows, device), size, dtype)


def _adaptive_windows(size: int, windows: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    order = torch.arange(windows, device=device)
    return order * size // windows, -(-(order + 1) * size // windows)


def _shares(starts: Tensor, ends: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    places = torch.arange(size, device=starts.device)
    inside = (places >= starts[:, None]) & (places < ends[:, None])
    return inside.to(dtype) / (ends - starts)[:, None]


def max_pool(x: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Max-pool (N, C, H, W) without overlap; the rest at the ends has windows of its own."""
    if not is_compiling():
        return F.max_pool2d(x, kernel, stride=kernel, ceil_mode=True)
    for dim, step in zip((2, 3), kernel):
        old = x.shape[dim]
        starts = torch.arange(-(-old // step), device=x.device) * step
        x = pool_windows(x, dim, starts, (starts + step).clamp(max=old), step, 'max')
    return x


def average_pool(x: Tensor, size: int) -> Tensor:
    """Average-pool (N, C, H, W) without overlap; the rest at the ends has windows of its own."""
    if not is_compiling():
        return F.avg_pool2d(x, size, ceil_mode=True)
    for dim in (2, 3):
        old = x.shape[dim]
        starts = torch.arange(-(-old // size), device=x.device) * size
        x = pool_windows(x, dim, starts, (starts + size).clamp(max=old), size, 'avg')
    return x


def pool_windows(
    x: Tensor, dim: int, starts: Tensor, ends: Tensor, width: int, pool: str
) -> Tensor:
    """Reduce windows along a dimension to their mean or their maximum.

    Args:
        x (Tensor): Of any shape.
        dim (int): The dimension.
        starts (Tensor): The first position of each window, int64.
        ends (Tensor): The position after the last of each window.
        width (int): At least the positions of the widest.
        pool (str): ``'avg'`` or ``'max'``.

    Returns:
        Tensor: The shape of ``x``, with as many positions along ``dim`` as there are windows.
    """
    if pool == 'max':
        last = ends[:, None] - 1  # a narrower window has its last position repeatedly
        places = torch.minimum(starts[:, None] + torch.arange(width, device=x.device), last)
        windows = x.detach().index_select(dim, places.flatten()).unflatten(dim, places.shape)
        # only the greatest are gathered, and so only they are scattered in the backward pass
        shape = [-1, *[1] * (x.dim() - dim - 1)]
        found = starts.view(shape) + windows.max(dim + 1).indices
        return x.gather(dim, torch.minimum(found, last.view(shape)))
    shares = _shares(starts, ends, x.shape[dim], x.dtype)
    return torch.tensordot(x, shares, dims=([dim], [1])).movedim(-1, dim)
