"""Normalisers of a teacher's channels: their moments are measured over training images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.numerics.precision import common_type, no_autocast, widest
from mmkd_plugin.registry import MODELS

Normalizer = TypeVar('Normalizer', bound='MeasuredNormalizer')

#: The least deviation of a channel, as a share of the largest mean or deviation of all: what is
#: below it is rounding.
LEAST = 1e-9


class Seen(NamedTuple):
    """The moments of the channels over some positions, in float64.

    Args:
        count (int): Number of positions.
        origin (Tensor): A vector near the mean, (C, 1), that is taken off each position first.
        sums (Tensor): The sum over positions, (C,).
        products (Tensor): The sum of the products of each two channels, (C, C).
    """

    count: int
    origin: Tensor
    sums: Tensor
    products: Tensor


class MeasuredNormalizer(nn.Module):
    """What all normalisers have in common: they are measured in one pass, and then fixed.

    A subclass says by :meth:`weight_of` and :meth:`weighted` what it makes of the moments.

    Args:
        in_channels (int): Channels of the teacher's map.
        weight (Tensor): What :meth:`weight_of` gives, with zeros.
    """

    def __init__(self, in_channels: int, weight: Tensor) -> None:
        super().__init__()
        self.in_channels = self.out_channels = in_channels
        self.register_buffer('mean', torch.zeros(in_channels))
        self.register_buffer('weight', weight)
        self._seen: Seen | None = None
        self._fitted = False

    def weight_of(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """What the centred channels are multiplied by.

        Args:
            mean (Tensor): Mean of each channel before it is taken off, float64 (C,).
            covariance (Tensor): Covariance of the channels, float64 (C, C), finite.

        Returns:
            Tensor: The weight; zeros if all positions are alike.
        """
        raise NotImplementedError

    def weighted(self, weight: Tensor, centred: Tensor) -> Tensor:
        """Multiplies centred channels, (N, C, L), by the weight."""
        raise NotImplementedError

    def fit(self: Normalizer, maps: Iterable[Tensor]) -> Normalizer:
        """Measures mean and covariance of the channels over some maps.

        Args:
            maps (Iterable[Tensor]): Maps of the teacher, ``(N, in_channels, H, W)`` each.

        Returns:
            MeasuredNormalizer: This module.

        Raises:
            ValueError: If there are fewer than two positions in all, all are alike, or a value is
                not finite.
        """
        for x in maps:
            self.observe(x)
        self.conclude()
        return self

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Adds the positions of a map to what is measured, in float64.

        Args:
            x (Tensor): Map of the teacher, ``(N, in_channels, H, W)``.
        """
        x = x.cpu() if widest(x) == torch.float32 else x
        rows = x.transpose(0, 1).flatten(1).double()
        if self._seen is None:
            # digits are kept where the mean is large
            origin = rows.mean(1, keepdim=True) if rows.numel() else rows.new_zeros(len(rows), 1)
            self._seen = Seen(0, origin, torch.zeros_like(origin[:, 0]), torch.zeros(()))
        seen, rows = self._seen, rows - self._seen.origin
        self._seen = Seen(
            seen.count + rows.shape[1],
            seen.origin,
            seen.sums + rows.sum(1),
            seen.products + rows @ rows.mT,
        )

    @torch.no_grad()
    def conclude(self) -> None:
        """Computes mean and weight from all maps since the last time.

        Raises:
            ValueError: If there are fewer than two positions in all, all are alike, or a value is
                not finite.
        """
        kind, seen, self._seen = type(self).__name__, self._seen, None
        count = 0 if seen is None else seen.count
        if count < 2:
            raise ValueError(f'{kind} needs two positions or more to be fitted, got {count}')
        covariance = (seen.products - torch.outer(seen.sums, seen.sums) / count) / (count - 1)
        if not covariance.isfinite().all():
            raise ValueError(f'{kind} was to be fitted on maps that are not finite')
        mean = seen.origin[:, 0] + seen.sums / count
        weight = self.weight_of(mean, covariance)
        if not weight.any():
            raise ValueError(f'{kind} needs maps that vary to be fitted: all positions are alike')
        self.mean.copy_(mean)
        self.weight.copy_(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises a map.

        Args:
            x (Tensor): Map of the teacher, ``(N, in_channels, H, W)``.

        Returns:
            Tensor: The same shape, in float32 or wider.

        Raises:
            ValueError: If it was not fitted, nor weights loaded.
        """
        if not self._fitted:  # asked until it is: each time waits for the device
            self._fitted = bool(self.weight.any())
        if not self._fitted:
            raise ValueError(
                f'this {type(self).__name__} is not fitted: run tools/fit_connector.py, or call '
                'fit(maps)'
            )
        with no_autocast(x.device.type):
            dtype = common_type(x, x)
            mean, weight = self.mean.to(dtype), self.weight.to(dtype)
            centred = x.to(dtype) - mean[:, None, None]
            return self.weighted(weight, centred.flatten(2)).unflatten(2, x.shape[2:])

    def extra_repr(self) -> str:
        """The arguments."""
        return str(self.in_channels)


@MODELS.register_module()
class ChannelNormalizer(MeasuredNormalizer):
    """Brings each channel of a teacher to mean 0 and variance 1 by itself.

    ``y = (x - mean) / std`` with the mean and the unbiased deviation of the channel over training
    images, as Theia has them of its teachers. ``tools/fit_connector.py`` measures it in one pass,
    as :meth:`fit` does over a sample of maps; then it is fixed. A channel that does not vary
    becomes 0.

    Theia: Distilling Diverse Vision Foundation Models for Robot Learning, CoRL 2024.

    - paper: https://arxiv.org/abs/2407.20179
    - code: https://github.com/bdaiinstitute/theia

    Args:
        in_channels (int): Channels of the teacher's map.

    Shape:
        - x: ``(N, in_channels, H, W)``.
        - output: the same shape, in float32 or wider.

    Raises:
        ValueError: In ``forward``, before it was fitted or its weights were loaded.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.connectors import ChannelNormalizer
        >>> normalizer = ChannelNormalizer(16).fit(torch.rand(4, 16, 8, 8) for _ in range(10))
        >>> normalizer(torch.rand(2, 16, 8, 8)).shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels, torch.zeros(in_channels))

    def weight_of(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """One over the deviation of each channel, (C,); 0 for a channel that does not vary."""
        std = covariance.diagonal().clamp(min=0).sqrt()
        varies = std > LEAST * torch.maximum(std, mean.abs()).amax()
        return torch.where(varies, 1 / std, 0)

    def weighted(self, weight: Tensor, centred: Tensor) -> Tensor:
        """Multiplies each channel of (N, C, L)."""
        return centred * weight[:, None]
