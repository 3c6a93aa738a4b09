"""Explainers: from the gradients of class scores to maps of the parts that speak for a class."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.explanations.choosing import Chosen, Scores, choose_classes
from mmkd_plugin.explanations.gradients import score_gradients
from mmkd_plugin.losses.numerics.checks import finite_number
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.models.bcos import DynamicLinear, explanation_mode
from mmkd_plugin.registry import MODELS
from mmkd_plugin.taps import Maps, Taps, as_list


class Explanation(NamedTuple):
    """Explanations of the chosen classes.

    Args:
        chosen (Chosen): The explained classes.
        maps (list[Tensor]): For each tapped map ``(N, K, C, H, W)``, in the size of the image.
    """

    chosen: Chosen
    maps: list[Tensor]

    def pairs(self) -> list[Tensor]:
        """The explanations of the present classes: for each tapped map ``(P, C, H, W)``."""
        return [x[self.chosen.present] for x in self.maps]


class Explainer:
    """Base of the explainers: the choice of classes, and the way from gradients to explanations.

    A subclass implements :meth:`explain`, and :meth:`context` if it needs a mode of the model.

    Args:
        scores (str | list[str]): Tap of the class scores, before sigmoid or softmax.
        teacher_scores (str | list[str], optional): Tap of the teacher's class scores. Defaults to
            None: the same as ``scores``.
        max_classes (int): Largest number of explained classes of an image. In training they are
            drawn anew for each iteration among the classes that the teacher sees. Defaults to 1.
        score_thr (float): Probability above which a teacher with independent classes (a detector)
            sees a class at a position. Defaults to 0.3.
        seed (int): Seed of the draw. Defaults to 0.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        scores: str | Sequence[str],
        teacher_scores: str | Sequence[str] | None = None,
        max_classes: int = 1,
        score_thr: float = 0.3,
        seed: int = 0,
    ) -> None:
        if isinstance(max_classes, bool) or not isinstance(max_classes, int) or max_classes < 1:
            raise ValueError(f'max_classes must be a whole number from 1 on, got {max_classes!r}')
        if not 0 < finite_number('score_thr', score_thr) < 1:
            raise ValueError(f'score_thr must be between 0 and 1, got {score_thr!r}')
        self.student_scores = Taps.parse(scores)
        self.teacher_scores = Taps.parse(scores if teacher_scores is None else teacher_scores)
        for key in ('student_scores', 'teacher_scores'):
            if getattr(self, key).repeats:
                raise ValueError(f'scores: {getattr(self, key)} names a tap twice; name each once')
        self.max_classes = max_classes
        self.score_thr = score_thr
        self.seed = seed

    def __deepcopy__(self, memo: dict) -> Explainer:
        """Is itself: a copy of a Distiller shares the teachers, which know it by identity."""
        return self

    def scores(self, side: str) -> Taps:
        """The tap of the class scores in a model.

        Args:
            side (str): ``'student'`` or ``'teacher'``.
        """
        return self.student_scores if side == 'student' else self.teacher_scores

    def stored_as(self, taps: Taps) -> str:
        """Name of the explanations of a teacher in a cache.

        Args:
            taps (Taps): The teacher's maps that explain.
        """
        return f'{type(self).__name__}({taps}; {self.teacher_scores}, {self.score_thr:g})'

    def choose(self, scores: Maps, kind: Scores, step: int | None = None) -> Chosen:
        """Chooses classes with :func:`choose_classes`.

        Args:
            scores (Maps): The teacher's scores.
            kind (Scores): Their kind.
            step (int, optional): Number of the iteration, for the draw. Defaults to None: the
                classes with most positions are taken.
        """
        draw = None if step is None else self.seed * 1_000_003 + step
        return choose_classes(scores, kind, self.max_classes, self.score_thr, draw)

    def __call__(
        self,
        features: Maps,
        scores: Maps,
        chosen: Chosen,
        kind: Scores,
        size: Sequence[int] | None,
        create_graph: bool = False,
    ) -> Explanation:
        """Explains the chosen classes.

        Args:
            features (Maps): The tapped maps ``(N, C, H, W)``, from which ``scores`` have a graph.
            scores (Maps): The class scores of the same model.
            chosen (Chosen): The classes to explain.
            kind (Scores): The kind of the scores.
            size (Sequence[int], optional): Height and width of the images in pixels, to which the
                explanations are resized. None keeps the size of the features.
            create_graph (bool): Whether the explanations can be differentiated. Defaults to False.

        Returns:
            Explanation: In float32 or wider.

        Raises:
            ValueError: If the scores do not depend on a feature map, or have another kind.
        """
        gradients = score_gradients(scores, features, chosen, kind, create_graph)
        maps = []
        for x, gradient in zip(as_list(features), gradients):
            x = x if create_graph else x.detach()
            with full_precision(x, gradient) as (feature, _):
                explained = self.explain(feature, gradient.to(feature.dtype))
                maps.append(explained if size is None else resized(explained, size))
        return Explanation(chosen, maps)

    def explain(self, features: Tensor, gradients: Tensor) -> Tensor:
        """Explains by one feature map.

        Args:
            features (Tensor): ``(N, C, H, W)``.
            gradients (Tensor): Gradients of the scores, ``(K, N, C, H, W)``.

        Returns:
            Tensor: ``(N, K, D, H, W)``, with 1 or C channels D.
        """
        raise NotImplementedError

    def context(self, model: nn.Module) -> AbstractContextManager:
        """The context in which an explained model runs forward and backward.

        Args:
            model (nn.Module): The model.
        """
        return nullcontext()

    def __str__(self) -> str:
        classes = 'class' if self.max_classes == 1 else 'classes'
        return (
            f'{type(self).__name__} of {self.student_scores}, {self.max_classes} {classes} an image'
        )


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes explanations, bilinearly and aligned to half a pixel.

    Args:
        maps (Tensor): Explanations ``(N, K, C, H, W)``.
        size (Sequence[int]): New height and width.
    """
    if maps.shape[3:] == tuple(size):
        return maps
    planes = F.interpolate(
        maps.flatten(1, 2), size=tuple(size), mode='bilinear', align_corners=False
    )
    return planes.unflatten(1, maps.shape[1:3])


def grad_cam(features: Tensor, gradients: Tensor) -> Tensor:
    """``relu(sum_c mean_HW(dy/dF_c) F_c)``.

    Args:
        features (Tensor): ``(N, C, H, W)``.
        gradients (Tensor): ``dy/dF``, ``(K, N, C, H, W)``.

    Returns:
        Tensor: ``(N, K, 1, H, W)``.
    """
    return torch.einsum('knc,nchw->nkhw', gradients.mean((3, 4)), features).relu()[:, :, None]


@MODELS.register_module()
class GradCAM(Explainer):
    """Grad-CAM: the channels of a feature map, weighted by the gradient of a class's score.

    ``relu(sum_c mean_HW(dy/dF_c) F_c)``, resized to the image. Tap the last map after a ReLU, or
    another map on the way to the scores.

    Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, ICCV 2017.

    - paper: https://arxiv.org/abs/1610.02391
    - code: https://github.com/m-parchami/GoodTeachersExplain (as e2KD uses it)

    Arguments and errors are those of :class:`Explainer`.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.explanations import GradCAM, Scores
        >>> features = torch.rand(2, 8, 4, 4, requires_grad=True)
        >>> scores = torch.nn.Conv2d(8, 5, 1)(features)
        >>> explainer, kind = GradCAM('decode_head.conv_seg', max_classes=3), Scores(5, False)
        >>> chosen = explainer.choose(scores, kind)
        >>> explainer(features, scores, chosen, kind, size=(32, 32)).maps[0].shape
        torch.Size([2, 3, 1, 32, 32])
    """

    def explain(self, features: Tensor, gradients: Tensor) -> Tensor:
        """Grad-CAM, ``(N, K, 1, H, W)``; see :func:`grad_cam`."""
        return grad_cam(features, gradients)


def gradient_attention_map(gradients: Tensor) -> Tensor:
    """``mean_c |dy/dF_c|``.

    Args:
        gradients (Tensor): ``dy/dF``, ``(K, N, C, H, W)``.

    Returns:
        Tensor: ``(N, K, 1, H, W)``.
    """
    return gradients.abs().mean(2, keepdim=True).transpose(0, 1)


@MODELS.register_module()
class GradientAttention(Explainer):
    """Gradient attention: how much a class's score depends on each position of a map.

    ``mean_c |dy/dF_c|``, resized to the image. Arguments and errors are those of
    :class:`Explainer`.

    Examples:
        >>> from mmkd_plugin.explanations import GradientAttention
        >>> print(GradientAttention('decode_head.conv_seg'))
        GradientAttention of decode_head.conv_seg, 1 class an image
    """

    def explain(self, features: Tensor, gradients: Tensor) -> Tensor:
        """Gradient attention, ``(N, K, 1, H, W)``; see :func:`gradient_attention_map`."""
        return gradient_attention_map(gradients)


@MODELS.register_module()
class BcosWeights(Explainer):
    """The dynamic linear weights of a B-cos model: ``W = dy/dx`` with its scaling held constant.

    Tap the model's encoding of the image: ``backbone.add_inverse`` of a ``BcosResNet``, with the
    six channels RGB and 1 - RGB. A loss compares W itself, not W multiplied by x.

    B-cos Networks: Alignment is All We Need for Interpretability, CVPR 2022.

    - paper: https://arxiv.org/abs/2205.10268
    - code: https://github.com/m-parchami/GoodTeachersExplain (as e2KD uses it)

    Arguments and errors are those of :class:`Explainer`.

    Examples:
        >>> from mmkd_plugin.explanations import BcosWeights
        >>> print(BcosWeights('decode_head.conv_seg'))
        BcosWeights of decode_head.conv_seg, 1 class an image
    """

    def explain(self, features: Tensor, gradients: Tensor) -> Tensor:
        """The gradients themselves, ``(N, K, C, H, W)``."""
        return gradients.transpose(0, 1)

    def context(self, model: nn.Module) -> AbstractContextManager:
        """The mode that holds the scaling constant, :func:`explanation_mode`.

        Raises:
            ValueError: If the model has no B-cos layer.
        """
        if not any(isinstance(module, DynamicLinear) for module in model.modules()):
            raise ValueError(
                f'{type(model).__name__} has no B-cos layer, so it has no dynamic linear weights; '
                'take mmkd_plugin.GradCAM'
            )
        return explanation_mode(model)
