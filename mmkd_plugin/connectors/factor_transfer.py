"""The paraphraser and the translator of factor transfer (FT)."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from mmkd_plugin.losses.numerics.checks import positive_number
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.registry import MODELS

SLOPE = 0.1  # of LeakyReLU, below 0


@MODELS.register_module()
class Paraphraser(nn.Module):
    """Autoencoder of the teacher's map; its code is the factor that the student imitates (FT).

    Three 3×3 convolutions reduce the channels to ``ratio * in_channels``, and three transposed ones
    restore them. LeakyReLU (0.1) follows each convolution; there is no norm. A stage before the
    student's training trains the paraphraser with :meth:`reconstruction_loss`, on the frozen
    teacher and without labels. The student then needs the encoder alone, see :meth:`drop_decoder`.

    Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS 2018.

    - paper: https://arxiv.org/abs/1802.04977
    - code: https://github.com/Jangho-Kim/Factor-Transfer-pytorch

    Args:
        in_channels (int): Channels of the teacher's map.
        ratio (float): Channels of the factor as a part of ``in_channels``, rounded and at
            least 1. Defaults to 0.5.

    Shape:
        - x: ``(N, in_channels, H, W)``.
        - output: ``(N, out_channels, H, W)``, the factor.

    Raises:
        TypeError: If ``ratio`` is not a number.
        ValueError: If ``ratio`` is not above 0.

    Examples:
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
        return max(1, round(self.in_channels * self.ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Encodes a map.

        Args:
            x (Tensor): Map of the teacher, ``(N, in_channels, H, W)``.

        Returns:
            Tensor: The factor, ``(N, out_channels, H, W)``.
        """
        return self.encoder(x)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Encodes a map and decodes its factor.

        Args:
            x (Tensor): Map of the teacher, ``(N, in_channels, H, W)``.

        Returns:
            Tensor: The reconstruction, ``(N, in_channels, H, W)``.

        Raises:
            RuntimeError: If the decoder has been dropped.
        """
        if self.decoder is None:
            raise RuntimeError('this Paraphraser has dropped its decoder: it only gives factors')
        return self.decoder(self.encoder(x))

    def reconstruction_loss(self, x: Tensor) -> Tensor:
        """The loss of the paraphraser: ``mean over elements of abs(reconstruct(x) - x)``.

        The mean absolute error follows the authors' code; the paper has a squared error.

        Args:
            x (Tensor): Map of the teacher, ``(N, in_channels, H, W)``. It gets no gradient.

        Returns:
            Tensor: A scalar.

        Raises:
            RuntimeError: If the decoder has been dropped.
        """
        x = x.detach()
        with full_precision(self.reconstruct(x), x) as (output, target):
            return (output - target).abs().sum() / max(target.numel(), 1)

    def drop_decoder(self) -> None:
        """Removes the decoder; :meth:`reconstruct` cannot run afterwards."""
        self.decoder = None

    def extra_repr(self) -> str:
        """The arguments."""
        return f'{self.in_channels}, ratio={self.ratio}'


@MODELS.register_module()
class Translator(nn.Module):
    """Turns the student's map into a factor with as many channels as the teacher's (FT).

    Three 3×3 convolutions with LeakyReLU (0.1) after each; there is no norm. The translator is
    trained along with the student.

    Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS 2018.

    - paper: https://arxiv.org/abs/1802.04977
    - code: https://github.com/Jangho-Kim/Factor-Transfer-pytorch

    Args:
        in_channels (int): Channels of the student's map.
        out_channels (int): Channels of the teacher's factor.

    Shape:
        - student: ``(N, in_channels, H, W)``.
        - output: ``(N, out_channels, H, W)``.

    Examples:
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
        """Converts a map.

        Args:
            student (Tensor): Map of the student, ``(N, in_channels, H, W)``.

        Returns:
            Tensor: The student's factor, ``(N, out_channels, H, W)``.
        """
        return self.encoder(student)

    def extra_repr(self) -> str:
        """The arguments."""
        return f'{self.in_channels}, {self.out_channels}'


def three_layers(kind: type[nn.Module], *channels: int) -> nn.Sequential:
    """3×3 convolutions with bias from each number of channels to the next, LeakyReLU after each.

    Args:
        kind (type): ``nn.Conv2d`` or ``nn.ConvTranspose2d``.
        channels (int): Four numbers of channels.

    Returns:
        nn.Sequential: Three convolutions and three activations.
    """
    layers = []
    for inner, outer in itertools.pairwise(channels):
        layers += [kind(inner, outer, 3, padding=1), nn.LeakyReLU(SLOPE, inplace=True)]
    return nn.Sequential(*layers)
