"""PHI standardisation of a teacher's features (RADIO): the same variance in each channel."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkd_plugin.connectors.normalizing import MeasuredNormalizer
from mmkd_plugin.registry import MODELS


@MODELS.register_module()
class PHISNormalizer(MeasuredNormalizer):
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
        super().__init__(in_channels, torch.zeros(in_channels, in_channels))

    def weight_of(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """The rotation over the scale, (C, C)."""
        values, vectors = torch.linalg.eigh(covariance.cpu())
        scale = values.clamp(min=0).mean().sqrt()
        if not scale > 0:
            return torch.zeros_like(vectors)
        return even_rotation(self.in_channels) @ vectors.mT / scale

    def weighted(self, weight: Tensor, centred: Tensor) -> Tensor:
        """Rotates the channels of (N, C, L)."""
        return weight @ centred


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
