"""PHI standardisation of a teacher's features (RADIO): the same variance in each channel."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mmkd_plugin.losses.numerics.precision import common_type, no_autocast
from mmkd_plugin.registry import MODELS


@MODELS.register_module()
class PHISNormalizer(nn.Module):
    """Brings all channels of a teacher to mean 0 and variance 1 by one rotation and one scale.

    ``y = (x - mean) W^T`` at each position, with ``W = H U^T / sqrt(mean eigenvalue)``: U holds the
    eigenvectors of the channels' covariance, and H is a Hadamard matrix over the root of its order,
    which spreads the variance evenly. Unlike standardising channel by channel, it keeps the angles
    and the ratios of distances, so that losses of several teachers are balanced and nothing is
    distorted. :meth:`fit` measures it in one pass over a sample of maps; then it is fixed.

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

    @torch.no_grad()
    def fit(self, maps: Iterable[Tensor]) -> PHISNormalizer:
        """Measures mean and covariance of the channels.

        Args:
            maps (Iterable[Tensor]): Maps of the teacher, ``(N, in_channels, H, W)`` each.

        Returns:
            PHISNormalizer: This module.

        Raises:
            ValueError: If there are fewer than two positions in all, or all are alike.
        """
        count, origin, sums, squares = 0, None, 0, 0
        for x in maps:
            rows = x.transpose(0, 1).flatten(1).double().cpu()
            origin = rows.mean(1, keepdim=True) if origin is None else origin
            rows = rows - origin  # digits are kept where the mean is large
            count, sums, squares = (
                count + rows.shape[1],
                sums + rows.sum(1),
                squares + rows @ rows.mT,
            )
        if count < 2:
            raise ValueError(f'PHISNormalizer.fit needs two positions or more, got {count}')
        covariance = (squares - torch.outer(sums, sums) / count) / (count - 1)
        values, vectors = torch.linalg.eigh(covariance)
        scale = values.clamp(min=0).mean().sqrt()
        if not scale > 0:
            raise ValueError('PHISNormalizer.fit needs maps that vary: all positions are alike')
        self.mean.copy_(origin[:, 0] + sums / count)
        self.weight.copy_(even_rotation(self.in_channels) @ vectors.mT / scale)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Normalises a map.

        Args:
            x (Tensor): Map of the teacher, ``(N, in_channels, H, W)``.

        Returns:
            Tensor: The same shape, in float32 or wider.

        Raises:
            ValueError: If it was not fitted, nor weights loaded.
        """
        if not self.weight.any():
            raise ValueError('this PHISNormalizer is not fitted: call fit(maps), or load weights')
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
