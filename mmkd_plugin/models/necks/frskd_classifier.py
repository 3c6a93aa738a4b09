"""FRSKD for classification: the self-teacher with its head, and the four losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.losses.attention import attention
from mmkd_plugin.losses.numerics.maps import sum_over_maps
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.losses.soft_target import soft_targets
from mmkd_plugin.models.necks.frskd import BiFPNSelfTeacher, count
from mmkd_plugin.registry import MODELS


@MODELS.register_module()
class BiFPNClassifier(nn.Module):
    """The self-teacher of a classifier: it refines the maps of the stages and classifies (FRSKD).

    It consists of a :class:`BiFPNSelfTeacher`, the mean over the positions of its last map, and a
    linear layer. :func:`frskd_losses` trains it along with the student; inference does not need it.

    Refine Myself by Teaching Myself: Feature Refinement via Self-Knowledge Distillation, CVPR 2021.

    - paper: https://arxiv.org/abs/2103.08273
    - code: https://github.com/MingiJi/FRSKD

    Args:
        in_channels (Sequence[int]): Channels of the stages, from high to low resolution.
        num_classes (int): Number of classes.
        width (float): Channels of a refined map as a multiple of the stage's. Defaults to 2.
        depth (int): Separable convolutions in each node. Defaults to 2.
        out_channels (int, optional): Channels of all refined maps; ``width`` then has no effect.
            Defaults to None.

    Shape:
        - inputs: maps ``(N, C_i, H_i, W_i)`` after a ReLU.
        - outputs: refined maps ``(N, width * C_i, H_i, W_i)``, and logits ``(N, num_classes)``.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If an argument cannot be used or, in ``forward``, the maps do not fit.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> stages = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, stride=2)])
        >>> head, self_teacher = nn.Linear(16, 10), BiFPNClassifier([8, 16], num_classes=10)
        >>> images, labels = torch.rand(4, 3, 16, 16), torch.randint(10, (4,))
        >>> first = stages[0](images).relu()
        >>> maps = first, stages[1](first).relu()
        >>> logits = head(maps[-1].mean((2, 3)))
        >>> losses = frskd_losses(maps, logits, *self_teacher(maps), labels)
        >>> sum(losses.values()).backward()
        >>> list(losses)
        ['student_loss', 'self_teacher_loss', 'soft_target_loss', 'feature_loss']
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        width: float = 2,
        depth: int = 2,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.neck = BiFPNSelfTeacher(in_channels, width, depth, out_channels)
        self.num_classes = count('num_classes', num_classes)
        self.head = nn.Linear(self.neck.out_channels[-1], num_classes)

    def forward(self, maps: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
        """Refines the maps of the stages and classifies.

        Args:
            maps (Sequence[Tensor]): Maps ``(N, C_i, H_i, W_i)`` of the stages, after a ReLU.

        Returns:
            tuple[tuple[Tensor, ...], Tensor]: The refined maps, and the logits
            ``(N, num_classes)``.

        Raises:
            ValueError: If the number of maps or of their channels differs from ``in_channels``.
        """
        refined = self.neck(maps)
        return refined, self.head(refined[-1].mean((2, 3)))


def match_attention(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The default feature term: :func:`attention` of each pair of maps, added up.

    Args:
        student (Sequence[Tensor]): Maps ``(N, C_i, H_i, W_i)``.
        teacher (Sequence[Tensor]): Maps of the same sizes, with any number of channels.

    Returns:
        Tensor: A scalar.
    """
    return sum_over_maps(attention, student, teacher)


def frskd_losses(
    student_maps: Sequence[Tensor],
    student_logits: Tensor,
    teacher_maps: Sequence[Tensor],
    teacher_logits: Tensor,
    target: Tensor,
    tau: float = 4.0,
    alpha: float = 2.0,
    beta: float = 100.0,
    features: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor] = match_attention,
) -> dict[str, Tensor]:
    """The four losses of FRSKD for classification; training minimises their sum.

    - ``student_loss``: cross entropy of the student.
    - ``self_teacher_loss``: cross entropy of the self-teacher. It trains the self-teacher and,
      through the maps, the student's backbone.
    - ``soft_target_loss``: ``alpha * tau^2 / N * sum of KL(p_tau(teacher) || p_tau(student))``.
    - ``feature_loss``: ``beta * features(student_maps, teacher_maps)``.

    The self-teacher is a constant in the last two, which train the student alone. The defaults are
    the authors' values for CIFAR-100.

    Refine Myself by Teaching Myself: Feature Refinement via Self-Knowledge Distillation, CVPR 2021.

    - paper: https://arxiv.org/abs/2103.08273
    - code: https://github.com/MingiJi/FRSKD

    Args:
        student_maps (Sequence[Tensor]): Maps ``(N, C_i, H_i, W_i)``, the inputs of the
            self-teacher.
        student_logits (Tensor): ``(N, classes)``.
        teacher_maps (Sequence[Tensor]): The refined maps, of the same sizes.
        teacher_logits (Tensor): Logits of the self-teacher, ``(N, classes)``.
        target (Tensor): Classes ``(N,)``, or their probabilities ``(N, classes)`` as after Mixup
            and CutMix.
        tau (float): Temperature. Defaults to 4.0.
        alpha (float): Factor of the soft targets. Defaults to 2.0.
        beta (float): Factor of the feature term. Defaults to 100.0.
        features (Callable): Loss between the student's maps and the refined maps. Defaults to
            :func:`match_attention`.

    Returns:
        dict[str, Tensor]: Four scalars.

    Raises:
        ValueError: If shapes do not fit.
    """
    return dict(
        student_loss=cross_entropy(student_logits, target),
        self_teacher_loss=cross_entropy(teacher_logits, target),
        soft_target_loss=alpha * soft_targets(student_logits, teacher_logits, tau, ndims=(2,)),
        feature_loss=beta * features(student_maps, [x.detach() for x in teacher_maps]),
    )


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy with classes or with probabilities, in float32 or wider, mean over the images.

    Args:
        logits (Tensor): ``(N, classes)``.
        target (Tensor): Classes ``(N,)``, integers, or their probabilities ``(N, classes)``.

    Returns:
        Tensor: A scalar.

    Raises:
        ValueError: If the target is neither.
    """
    soft = target.is_floating_point()
    if target.shape != (logits.shape if soft else logits.shape[:1]):
        raise ValueError(
            f'target must be integers (N,) or probabilities (N, classes), got {target.dtype} '
            f'{tuple(target.shape)} for logits {tuple(logits.shape)}'
        )
    with full_precision(logits, logits) as (x, _):
        return F.cross_entropy(x, target.to(x.dtype) if soft else target.long())
