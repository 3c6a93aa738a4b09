"""Choosing: the classes of an image that are explained, and where a teacher sees them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmkd_plugin.taps import Maps, Taps, as_list, module_around
from mmkd_plugin.taps.class_scores import are_independent


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
    anchors = scores.ndim == 4 and scores.shape[1] // kind.classes
    fits = scores.ndim == 4 and scores.shape[1] == anchors * kind.classes
    if not fits or (anchors > 1 and not kind.sigmoid):  # a softmax goes over all channels
        raise ValueError(
            f'expected class scores (N, C, H, W), or (N, C), with a channel for each of the '
            f'{kind.classes} classes{" (and anchors)" * kind.sigmoid}, got {shape}'
        )
    return scores.unflatten(1, (-1, kind.classes))


def _expanded(index: Tensor, like: Tensor) -> Tensor:
    """An index ``(N, K)`` as ``(N, K, A, H, W)``, for maps ``(N, any, A, H, W)``."""
    return index[:, :, None, None, None].expand(-1, -1, *like.shape[2:])


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
    sigmoid = are_independent(head)
    if sigmoid is False:
        raise ValueError(
            f"{owner}: the scores of {type(head).__name__} at '{tap}' have a background class; "
            'only heads with a sigmoid for each class can be explained (RetinaNet, FCOS, GFL, ATSS)'
        )
    return Scores(head.num_classes, bool(sigmoid))
