"""PHI standardisation of a teacher's features (RADIO): the same variance in each channel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.numerics.precision import common_type, no_autocast, widest
from mmkd_plugin.registry import MODELS


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


@MODELS.register_module()
class PHISNormalizer(nn.Module):
    """Brings all channels of a teacher to mean 0 and variance 1 by one rotation and one scale.

    ``y = (x - mean) W^T`` at each position, with ``W = H U^T / sqrt(mean eigenvalue)``: U holds the
    eigenvectors of the channels' covariance, and H is a Hadamard matrix over the root of its order,
    which spreads the variance evenly. Unlike standardising channel by channel, it keeps the angles
    and the ratios of distances, so that losses of several teachers are balanced and nothing is
    distorted. ``tools/fit_connector.py`` measures it in one pass over training images, as
    :meth:`fit` does over a sample of maps; then it is fixed.

    H is a product of Sylvester's and Paley's matrices. Channel counts for which there is none, such
    as those that 4 does not divide, get a random rotation, and variances only near 1.

    RADIOv2.5: Improved Baselines for Agglomerative Vision Foundation Models, CVPR 2025; PHI-S:
    Distribution Balancing for Label-Free Multi-Teacher Distillation, 2024.

    - paper: https://arxiv.org/abs/2410.01680
    - code: https://github.com/NVlabs/RADIO (models alone; formula from the paper)

    Args:
        in_channels (int): Channels of the teacher's map.

    Shape:
        - x: ``(N, in_channels, H, W)``.
        - output: the same shape, in float32 or wider.

    Raises:
        ValueError: In ``forward``, before it was fitted or its weights were loaded.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.connectors import PHISNormalizer
        >>> normalizer = PHISNormalizer(16).fit(torch.rand(4, 16, 8, 8) for _ in range(10))
        >>> normalizer(torch.rand(2, 16, 8, 8)).shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.in_channels = self.out_channels = in_channels
        self.register_buffer('mean', torch.zeros(in_channels))
        self.register_buffer('weight', torch.zeros(in_channels, in_channels))
        self._seen: Seen | None = None
        self._fitted = False

    def fit(self, maps: Iterable[Tensor]) -> PHISNormalizer:
        """Measures mean and covariance of the channels over some maps.

        Args:
            maps (Iterable[Tensor]): Maps of the teacher, ``(N, in_channels, H, W)`` each.

        Returns:
            PHISNormalizer: This module.

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
        """Computes the rotation and the scale from all maps since the last time.

        Raises:
            ValueError: If there are fewer than two positions in all, all are alike, or a value is
                not finite.
        """
        seen, self._seen = self._seen, None
        count = 0 if seen is None else seen.count
        if count < 2:
            raise ValueError(
                f'PHISNormalizer needs two positions or more to be fitted, got {count}'
            )
        covariance = (seen.products - torch.outer(seen.sums, seen.sums) / count) / (count - 1)
        if not covariance.isfinite().all():
            raise ValueError('PHISNormalizer was to be fitted on maps that are not finite')
        values, vectors = torch.linalg.eigh(covariance.cpu())
        scale = values.clamp(min=0).mean().sqrt()
        if not scale > 0:
            raise ValueError(
                'PHISNormalizer needs maps that vary to be fitted: all positions are alike'
            )
        self.mean.copy_(seen.origin[:, 0] + seen.sums / count)
        self.weight.copy_(even_rotation(self.in_channels) @ vectors.mT / scale)

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
                'this PHISNormalizer is not fitted: run tools/fit_connector.py, or call fit(maps)'
            )
        with no_autocast(x.device.type):
            dtype = common_type(x, x)
            mean, weight = self.mean.to(dtype), self.weight.to(dtype)
            centred = x.to(dtype) - mean[:, None, None]
            return (weight @ centred.flatten(2)).unflatten(2, x.shape[2:])

    def extra_repr(self) -> str:
        """The arguments."""
        return str(self.in_channels)


def even_rotation(order: int) -> Tensor:
    """A Hadamard matrix over the root of its order, float64; a fixed random rotation if none."""
    found = hadamard(order)
    if found is not None:
        return found / order**0.5
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(order, order, generator=generator, dtype=torch.float64))[0]


def hadamard(order: int) -> Tensor | None:
    """A matrix of 1 and -1 with orthogonal rows, float64: by Paley, or by Sylvester's doubling.

    Args:
        order (int): Number of rows.

    Returns:
        Tensor | None: ``(order, order)``, None if neither construction (with a prime) gives it.
    """
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if (order > 2 and order % 4) or order % 2:
        return None
    if (q := order - 1) % 4 == 3 and is_prime(q):
        return conference(q, -1) + torch.eye(order, dtype=torch.float64)
    if (q := order // 2 - 1) % 4 == 1 and is_prime(q):
        inner, pair = conference(q, 1), torch.tensor([[1.0, 1], [1, -1]], dtype=torch.float64)
        corner = torch.tensor([[1.0, -1], [-1, -1]], dtype=torch.float64)
        return torch.kron(inner, pair) + torch.kron(torch.eye(q + 1, dtype=torch.float64), corner)
    half = hadamard(order // 2)
    if half is None:
        return None
    return torch.kron(torch.tensor([[1.0, 1], [1, -1]], dtype=torch.float64), half)


def conference(q: int, sign: int) -> Tensor:
    """Jacobsthal's matrix of a prime, bordered with 1 above and ``sign`` on the left; 0 inside."""
    square = torch.full((q,), -1.0, dtype=torch.float64)
    square[torch.arange(1, q) ** 2 % q] = 1
    square[0] = 0
    order = torch.arange(q)
    matrix = torch.ones(q + 1, q + 1, dtype=torch.float64)
    matrix[0, 0] = 0
    matrix[1:, 0] = sign
    matrix[1:, 1:] = square[(order[:, None] - order) % q]
    return matrix


def is_prime(number: int) -> bool:
    """Whether a number is prime."""
    return number > 1 and all(number % n for n in range(2, int(number**0.5) + 1))
