"""Explanations: the parts of an image that speak for a class (Grad-CAM, gradients, B-cos).

An explanation is of one class score of a dense model: the sum of the class's scores over the
positions where the teacher sees the class. One pass takes the gradients of all classes of all
images, so a loss on explanations costs one more backward pass and one double backward for any
number of classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.losses.numerics.checks import finite_number
from mmkd_plugin.losses.numerics.precision import full_precision
from mmkd_plugin.models.bcos import DynamicLinear, explanation_mode
from mmkd_plugin.registry import MODELS
from mmkd_plugin.taps import Maps, TapReader, Taps, as_list, module_around


class Scores(NamedTuple):
    """The kind of a model's class scores.

    Args:
        classes (int): Number of classes.
        sigmoid (bool): Whether the classes are independent, as in most detectors.
    """

    classes: int
    sigmoid: bool


class Chosen(NamedTuple):
    """The classes of each image to explain, and the positions where the teacher sees them.

    Args:
        classes (Tensor): Classes ``(N, K)``, int64; -1 where an image has fewer than K.
        positions (list[Tensor]): For each map of scores ``(N, K, A, H, W)``, bool, with A anchors
            at each position.
    """

    classes: Tensor
    positions: list[Tensor]

    @property
    def present(self) -> Tensor:
        """``(N, K)``, bool: False where an image has fewer than K classes."""
        return self.classes >= 0

    def take(self, columns: Tensor) -> Chosen:
        """Some of the classes of each image.

        Args:
            columns (Tensor): ``(N, L)``, int64: numbers from 0 to K - 1.

        Returns:
            Chosen: With L classes for each image.
        """
        positions = [x.gather(1, _expanded(columns, x)) for x in self.positions]
        return Chosen(self.classes.gather(1, columns), positions)


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


def choose_classes(
    scores: Maps,
    kind: Scores,
    max_classes: int,
    score_thr: float = 0.3,
    draw: int | None = None,
) -> Chosen:
    """Chooses classes among those that the teacher sees in an image.

    With a softmax, the teacher sees the class of the highest score at each position. With
    independent classes, it sees each class whose probability is above ``score_thr``.

    Args:
        scores (Maps): The teacher's scores before sigmoid or softmax: one or several maps
            ``(N, A·C, H, W)``, or ``(N, C)``.
        kind (Scores): Their kind.
        max_classes (int): Largest number of classes for each image, K.
        score_thr (float): Probability above which an independent class is seen. Defaults to 0.3.
        draw (int, optional): Seed of a random draw among the seen classes. Defaults to None: the
            classes with most positions are taken.

    Returns:
        Chosen: The classes and their positions.

    Raises:
        ValueError: If the scores have another shape.
    """
    maps = [_by_anchor(x.detach(), kind) for x in as_list(scores)]
    if kind.sigmoid:
        seen = [x.sigmoid() > score_thr for x in maps]
    else:
        seen = [
            torch.zeros_like(x, dtype=torch.bool).scatter_(2, x.argmax(2, True), True) for x in maps
        ]
    count = sum(x.sum((1, 3, 4)) for x in seen)  # (N, C)
    rank = count
    if draw is not None:
        generator = torch.Generator().manual_seed(draw % 2**32)
        rank = torch.rand(count.shape, generator=generator).to(count.device)
    rank = torch.where(count > 0, rank, -1)
    best, classes = rank.topk(min(max_classes, kind.classes), dim=1)
    by_class = [x.transpose(1, 2) for x in seen]  # (N, C, A, H, W)
    positions = [x.gather(1, _expanded(classes, x)) & _expanded(best >= 0, x) for x in by_class]
    return Chosen(torch.where(best >= 0, classes, -1), positions)


def _by_anchor(scores: Tensor, kind: Scores) -> Tensor:
    """Scores ``(N, A·C, H, W)`` or ``(N, C)`` as ``(N, A, C, H, W)``.

    One channel that tells two classes apart becomes two.

    Raises:
        ValueError: If the scores have another shape.
    """
    shape = tuple(scores.shape)
    if scores.ndim == 2:
        scores = scores[..., None, None]
    if scores.ndim == 4 and scores.shape[1] == 1 and kind == Scores(2, False):
        scores = torch.cat([torch.zeros_like(scores), scores], 1)
    if scores.ndim != 4 or scores.shape[1] % kind.classes:
        raise ValueError(
            f'expected class scores (N, C, H, W), or (N, C), with a channel for each of the '
            f'{kind.classes} classes (and anchors), got {shape}'
        )
    return scores.unflatten(1, (-1, kind.classes))


def _expanded(index: Tensor, like: Tensor) -> Tensor:
    """An index ``(N, K)`` as ``(N, K, A, H, W)``, for maps ``(N, any, A, H, W)``."""
    return index[:, :, None, None, None].expand(-1, -1, *like.shape[2:])


def score_gradients(
    scores: Maps, features: Maps, chosen: Chosen, kind: Scores, create_graph: bool
) -> list[Tensor]:
    """The gradient of the score of each chosen class with respect to feature maps.

    The score of a class is the sum of its scores over its positions. Row k holds the k-th class of
    every image. All rows go through the model in one batched backward pass; if an operation on the
    way cannot be batched, each row takes a pass of its own.

    Args:
        scores (Maps): Class scores with a graph from ``features``.
        features (Maps): Feature maps ``(N, C, H, W)``.
        chosen (Chosen): The classes to explain.
        kind (Scores): The kind of the scores.
        create_graph (bool): Whether the gradients can be differentiated again.

    Returns:
        list[Tensor]: For each feature map ``(K, N, C, H, W)``, zero where there is no class.

    Raises:
        ValueError: If the scores do not depend on a feature map, or have another kind than the
            scores from which the classes were chosen.
    """
    outputs, inputs = as_list(scores), as_list(features)
    rows = [_selection(x, at, chosen.classes, kind) for x, at in zip(outputs, chosen.positions)]

    def gradients(row: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found = torch.autograd.grad(
            outputs, inputs, row, create_graph=create_graph, retain_graph=True, allow_unused=True
        )
        if any(x is None for x in found):
            raise ValueError('the class scores do not depend on the map that is to explain them')
        return found

    singly = [tuple(row[k] for row in rows) for k in range(len(rows[0]))]
    if len(singly) > 1:
        try:
            return list(torch.func.vmap(gradients, randomness='same')(tuple(rows)))
        except RuntimeError:  # some operations cannot be batched, such as a frozen BN under AMP
            pass
    return [torch.stack(found) for found in zip(*map(gradients, singly))]


def _selection(scores: Tensor, positions: Tensor, classes: Tensor, kind: Scores) -> Tensor:
    """1 at the positions of the class of each row, ``(K, *scores.shape)``."""
    size = scores.shape[2:] or (1, 1)
    if positions.shape[3:] != size:  # another stride
        positions = F.interpolate(positions.flatten(1, 2).float(), size).unflatten(
            1, positions.shape[1:3]
        )
    one_hot = F.one_hot(classes.clamp(min=0), kind.classes) * (classes >= 0)[..., None]
    rows = positions[:, :, :, None] * one_hot[:, :, None, :, None, None]  # (N, K, A, C, H, W)
    if scores.ndim == 4 and scores.shape[1] == 1 and kind.classes == 2:
        rows = rows[:, :, :, 1:] - rows[:, :, :, :1]
    rows = rows.flatten(2, 3).transpose(0, 1).to(scores.dtype)
    if rows.shape[1:] != (*scores.shape[:2], *size):
        raise ValueError(
            f'student and teacher have class scores of different kinds: {tuple(scores.shape)} '
            f'where {tuple(rows.shape[1:])} was expected'
        )
    return rows.reshape(-1, *scores.shape)


def grad_cam(features: Tensor, gradients: Tensor) -> Tensor:
    """``relu(sum_c mean_HW(dy/dF_c) F_c)``.

    Args:
        features (Tensor): ``(N, C, H, W)``.
        gradients (Tensor): ``dy/dF``, ``(K, N, C, H, W)``.

    Returns:
        Tensor: ``(N, K, 1, H, W)``.
    """
    return torch.einsum('knc,nchw->nkhw', gradients.mean((3, 4)), features).relu()[:, :, None]


def gradient_attention_map(gradients: Tensor) -> Tensor:
    """``mean_c |dy/dF_c|``.

    Args:
        gradients (Tensor): ``dy/dF``, ``(K, N, C, H, W)``.

    Returns:
        Tensor: ``(N, K, 1, H, W)``.
    """
    return gradients.abs().mean(2, keepdim=True).transpose(0, 1)


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
        self.max_classes = max_classes
        self.score_thr = score_thr
        self.seed = seed

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


def scores_of(model: nn.Module, taps: Taps, owner: str = 'the model') -> Scores:
    """Finds the kind of the class scores at a tap of a model.

    Args:
        model (nn.Module): A model of mmseg or mmdet.
        taps (Taps): The tap of its class scores.
        owner (str): Name of the model in an error. Defaults to ``'the model'``.

    Returns:
        Scores: The kind of the scores.

    Raises:
        ValueError: If no module around the tap knows the number of classes, or scores of this kind
            cannot be explained.
    """
    tap = taps.taps[0]
    head = module_around(model, tap, 'num_classes')
    if head is None:
        raise ValueError(f"{owner}: no module around '{tap}' has `num_classes`")
    sigmoid = _classes_are_independent(head)
    if sigmoid is False:
        raise ValueError(
            f"{owner}: the scores of {type(head).__name__} at '{tap}' have a background class; "
            'only heads with a sigmoid for each class can be explained (RetinaNet, FCOS, GFL, ATSS)'
        )
    return Scores(head.num_classes, bool(sigmoid))


def _classes_are_independent(head: nn.Module) -> bool | None:
    """Whether a detector's head has a sigmoid for each class; None for a segmentor's head."""
    sigmoid = getattr(head, 'use_sigmoid_cls', None)
    if sigmoid is None and hasattr(head, 'loss_cls'):
        sigmoid = getattr(head.loss_cls, 'use_sigmoid', False)
    return None if sigmoid is None else bool(sigmoid)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode, and afterwards each of its modules back in its own mode.

    Args:
        model (nn.Module): The model.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def explain(
    model: nn.Module,
    inputs: Tensor,
    data_samples: list | None,
    explainer: Explainer,
    tap: str | Taps,
    chosen: Chosen | None = None,
    side: str = 'student',
) -> Explanation:
    """Explains the class scores of a model on a batch.

    The model's gradients, modes and buffers stay as they are.

    Args:
        model (nn.Module): A model of mmseg or mmdet.
        inputs (Tensor): Images ``(N, C, H, W)`` from its data preprocessor.
        data_samples (list, optional): Their data samples.
        explainer (Explainer): The way to explain.
        tap (str | Taps): The maps that explain.
        chosen (Chosen, optional): The classes to explain. Defaults to None: the classes with most
            positions in the model's own scores.
        side (str): ``'student'`` or ``'teacher'``: which of the explainer's taps of scores to read.
            Defaults to ``'student'``.

    Returns:
        Explanation: Without a graph.

    Raises:
        ValueError: If the model has no such tap, or its scores cannot be explained.
    """
    taps = tap if isinstance(tap, Taps) else Taps.parse(tap)
    scored = explainer.scores(side)
    kind = scores_of(model, scored)
    learning = [p for p in model.parameters() if p.requires_grad]
    # A map that is overwritten later cannot be differentiated, so every map is copied.
    reader = TapReader(model, [*taps, *scored], clone=list(taps), on_path=list(taps))
    try:
        model.requires_grad_(False)
        with evaluating(model), torch.enable_grad(), explainer.context(model):
            with reader:
                model(inputs, data_samples, mode='tensor')
            maps = {place: reader.read(place) for place in [*taps, *scored]}
            features, scores = taps.of(maps), scored.of(maps)
            chosen = explainer.choose(scores, kind) if chosen is None else chosen
            return explainer(features, scores, chosen, kind, inputs.shape[2:])
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
