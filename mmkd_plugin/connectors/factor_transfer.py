"""Paraphraser and translator of factor transfer (FT)."""

from __future__ import annotations

from torch import Tensor, nn

from mmkd_plugin.losses.numerics.checks import positive_number
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.registry import MODELS

SLOPE = 0.1


@MODELS.register_module()
class Paraphraser(nn.Module):
    """Autoencoder of the teacher's map; its code is the factor that the student imitates (FT).

    Three 3x3 convolutions shorten the channels to ``ratio * in_channels``, three transposed ones
    bring them back; LeakyReLU (0.1) after each, no norm. It is trained first, on the frozen
    teacher and without labels, with :meth:`reconstruction_loss`. After that the decoder is of no
    use, see :meth:`drop_decoder`.

    Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS 2018.

    - paper: https://arxiv.org/abs/1802.04977
    - code: https://github.com/Jangho-Kim/Factor-Transfer-pytorch

    Args:
        in_channels (int): Channels of the teacher's map.
        ratio (float): Channels of the factor as a part of ``in_channels``, rounded down and at
            least 1. Default: 0.5.

    Shape:
        - x: (N, in_channels, H, W).
        - output: (N, out_channels, H, W), the factor.

    Raises:
        TypeError: If ``ratio`` is not a number.
        ValueError: If ``ratio`` is not above 0.

    Example:
        >>> import torch
        >>> from mmkd_plugin.connectors import Paraphraser
        >>> paraphraser, x = Paraphraser(64), torch.rand(2, 64, 8, 8)
        >>> paraphraser.reconstruction_loss(x).backward()
        >>> paraphraser.drop_decoder()
        >>> paraphraser(x).shape, paraphraser.out_channels
        (torch.Size([2, 32, 8, 8]), 32)
    """

    def __init__(self, in_channels: int, ratio: float = 0.5) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.ratio = positive_number('ratio', ratio)
        width = self.out_channels
        self.encoder = three_layers(nn.Conv2d, in_channels, in_channels, width, width)
        self.decoder = three_layers(nn.ConvTranspose2d, width, width, in_channels, in_channels)

    @property
    def out_channels(self) -> int:
        """Channels of the factor."""
        return max(1, int(self.in_channels * self.ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the factor of a map."""
        return self.encoder(x)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Returns what encoder and decoder make of a map.

        Raises:
            RuntimeError: If the decoder has been dropped.
        """
        if self.decoder is None:
            raise RuntimeError('this Paraphraser has dropped its decoder: it only gives factors')
        return self.decoder(self.encoder(x))

    def reconstruction_loss(self, x: Tensor) -> Tensor:
        """Returns what training minimises: ``mean over elements of abs(reconstruct(x) - x)``.

        The mean absolute error is that of the authors' code; the paper writes a squared one.

        Args:
            x (Tensor): Map of the teacher. It gets no gradient.
        """
        x = x.detach()
        with full_precision(self.reconstruct(x), x) as (output, target):
            return (output - target).abs().sum() / max(target.numel(), 1)

    def drop_decoder(self) -> None:
        """Removes the decoder, for good."""
        self.decoder = None

    def extra_repr(self) -> str:
        return f'{self.in_channels}, ratio={self.ratio}'


@MODELS.register_module()
class Translator(nn.Module):
    """Turns the student's map into a factor as wide as the teacher's (FT).

    Three 3x3 convolutions, LeakyReLU (0.1) after each, no norm. Trained with the student.

    Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS 2018.

    - paper: https://arxiv.org/abs/1802.04977
    - code: https://github.com/Jangho-Kim/Factor-Transfer-pytorch

    Args:
        in_channels (int): Channels of the student's map.
        out_channels (int): Channels of the teacher's factor.

    Shape:
        - student: (N, in_channels, H, W).
        - output: (N, out_channels, H, W).

    Example:
        >>> import torch
        >>> from mmkd_plugin.connectors import Paraphraser, Translator
        >>> translator = Translator(16, Paraphraser(64).out_channels)
        >>> translator(torch.rand(2, 16, 8, 8)).shape
        torch.Size([2, 32, 8, 8])
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.encoder = three_layers(nn.Conv2d, in_channels, in_channels, out_channels, out_channels)

    def forward(self, student: Tensor) -> Tensor:
        """Returns the factor of the student's map."""
        return self.encoder(student)

    def extra_repr(self) -> str:
        return f'{self.in_channels}, {self.out_channels}'


def three_layers(kind: type[nn.Module], *channels: int) -> nn.Sequential:
    """Convolutions 3x3 with bias from each channel count to the next, an activation after each.

    Args:
        kind (type): ``nn.Conv2d`` or ``nn.ConvTranspose2d``.
        channels (int): Four channel counts.
    """
    layers = []
    for inner, outer in zip(channels, channels[1:]):
        layers += [kind(inner, outer, 3, padding=1), nn.LeakyReLU(SLOPE, inplace=True)]
    return nn.Sequential(*layers)
