"""Factor transfer (FT): the loss. Its paraphraser and translator are connectors."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from mmkd_plugin.losses.numerics import factor_transfer as fast
from mmkd_plugin.losses.numerics.checks import check_shapes, loss_weights
from mmkd_plugin.losses.numerics.compiling import with_fast_form
from mmkd_plugin.losses.numerics.maps import Maps, Weight, sum_over_maps
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.losses.numerics.vectors import unit_samples
from mmkd_plugin.registry import MODELS


@with_fast_form(fast.factor_transfer)
def factor_transfer(student: Tensor, teacher: Tensor, p: int = 1) -> Tensor:
    """``mean over all elements of abs(F_S / ||F_S|| - F_T / ||F_T||)^p``, one norm per sample.

    Args:
        student (Tensor): Factor of the student, (N, C, H, W) or (N, C).
        teacher (Tensor): Factor of the teacher, same shape. It gets no gradient.
        p (int): 1 or 2. Defaults to 1.

    Returns:
        Tensor: A scalar.
    """
    check_shapes(student, teacher, ndims=(2, 4))
    with full_precision(student, teacher) as (s, t):
        gap = unit_samples(s) - unit_samples(t)
        return (gap.abs() if p == 1 else gap.square()).sum() / max(s.numel(), 1)


@MODELS.register_module()
class FactorTransferLoss(nn.Module):
    """Match the direction of the factors, which two networks make of the maps (FT).

    ``mean over all elements of abs(F_S / ||F_S|| - F_T / ||F_T||)^p``, with one L2 norm for each
    sample. The teacher's factor comes from a trained :class:`~mmkd_plugin.connectors.Paraphraser`,
    the student's from a :class:`~mmkd_plugin.connectors.Translator`. A factor no longer than 1e-12
    has no direction: it counts as 0, and gets no gradient.

    Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS 2018.

    - paper: https://arxiv.org/abs/1802.04977
    - code: https://github.com/Jangho-Kim/Factor-Transfer-pytorch

    Args:
        p (int): 1, as the authors, or 2, a mean of squares as other libraries offer. Defaults to 1.
        loss_weight (float | list[float]): Factor on the loss, or one for each map. The authors use
            500 on the last stage. Defaults to 1.0.

    Shape:
        - student: (N, C, H, W) or (N, C), or a sequence of such factors (the losses are added up).
        - teacher: the same shapes as the student.
        - output: a scalar.

    Raises:
        TypeError: If ``loss_weight`` is not a number.
        ValueError: If ``p`` is neither 1 nor 2 or, in ``forward``, if shapes differ.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.connectors import Paraphraser, Translator
        >>> from mmkd_plugin.losses import FactorTransferLoss
        >>> paraphraser, translator = Paraphraser(64), Translator(16, 32)
        >>> criterion = FactorTransferLoss(loss_weight=500)
        >>> student = torch.randn(2, 16, 8, 8, requires_grad=True)
        >>> teacher = torch.randn(2, 64, 8, 8)
        >>> loss = criterion(translator(student), paraphraser(teacher))
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([2, 16, 8, 8]))
    """

    needs_same_channels: ClassVar[bool] = True
    needs_same_size: ClassVar[bool] = True

    def __init__(self, p: int = 1, loss_weight: Weight = 1.0) -> None:
        super().__init__()
        if type(p) is not int or p not in (1, 2):
            raise ValueError(f'p must be 1 or 2, got {p!r}')
        self.p = p
        self.loss_weight = loss_weights(loss_weight)

    def forward(self, student: Maps, teacher: Maps) -> Tensor:
        """Return the weighted loss of a factor, or of a sequence of factors."""
        compare = partial(factor_transfer, p=self.p)
        return sum_over_maps(compare, student, teacher, self.loss_weight)

    def extra_repr(self) -> str:
        return f'p={self.p}, loss_weight={self.loss_weight}'
