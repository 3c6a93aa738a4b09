"""Explanations on the image: the parts of it that speak for the classes that the teacher sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from mmkd_plugin.explanations import Explainer, GradCAM, scores_of
from mmkd_plugin.taps import Taps
from mmkd_plugin.visualization.attention import cosine
from mmkd_plugin.visualization.figure import Cell, Grid, Scale, faded


def relevance(explanation: Tensor) -> np.ndarray:
    """The relevance of each position of an explanation, as a share of the largest value.

    Args:
        explanation (Tensor): ``(C, H, W)``. The relevance of one channel is its positive part, that
            of several channels their norm.

    Returns:
        np.ndarray: ``(H, W)``, from 0 to 1; all zero if no value is above zero.
    """
    values = explanation.double()
    values = values[0].clamp(min=0) if len(values) == 1 else values.norm(dim=0)
    peak = values.max()
    return (values / peak if peak > 0 else values).cpu().numpy()


def explanations_grid(
    size: tuple[int, int],
    image: np.ndarray,
    covers: tuple[float, float],
    rows: Sequence[tuple[str, Sequence[Tensor]]],
    classes: Sequence[str],
    reference: str | None = None,
) -> Grid:
    """The grid of the explanations of several models, with a column for each class.

    Args:
        size (tuple[int, int]): Width and height of the original image, pixels.
        image (np.ndarray): ``(h, w, 3)``, uint8 RGB.
        covers (tuple[float, float]): Width and height that the explanations cover, pixels of the
            original image.
        rows (Sequence[tuple]): For each model its name, and an explanation ``(C, H, W)`` for each
            class.
        classes (Sequence[str]): Names of the classes.
        reference (str, optional): Name of the model with which the others are compared. Defaults to
            None.

    Returns:
        Grid: With a row for each model.
    """
    target, ground = dict(rows).get(reference), faded(image)
    cells = []
    for name, explanations in rows:
        line: list[Cell | None] = []
        for number, explanation in enumerate(explanations):
            heat = relevance(explanation)
            like = None
            if target is not None and name != reference:
                like = cosine(explanation.cpu().numpy(), target[number].cpu().numpy())
            caption = 'zero everywhere' if not heat.any() else ''
            caption = caption if like is None else f'cosine {like:.2f}'
            line.append(Cell(ground, heat, covers, caption=caption))
        cells.append((name, line))
    scales = [Scale(0.0, 1.0, 'share of its maximum')] * len(classes)
    columns = [f'class {name}' for name in classes]
    return Grid(size, columns, cells, [Cell(image=image, caption='image')], scales)


def default_explainer(student: nn.Module, teacher: nn.Module | None) -> Explainer | None:
    """Grad-CAM of the class scores of a student and a teacher.

    Args:
        student (nn.Module): A model of mmseg or mmdet.
        teacher (nn.Module, optional): Another one, or None.

    Returns:
        Explainer | None: None if the class scores of a model are not found.
    """
    found = [class_scores(model) for model in (student, teacher) if model is not None]
    return None if None in found else GradCAM(*found)


def class_scores(model: nn.Module) -> list[str] | None:
    """Finds the class scores of a segmentor or of a detector with dense heads.

    Args:
        model (nn.Module): A model of mmseg or mmdet.

    Returns:
        list[str] | None: Their taps, or None if there are no scores that can be explained.
    """
    head, name = getattr(model, 'decode_head', None), 'decode_head'
    if isinstance(head, nn.ModuleList):
        head, name = head[-1], f'{name}.{len(head) - 1}'
    taps = [f'{name}.conv_seg'] if isinstance(getattr(head, 'conv_seg', None), nn.Module) else []
    head = getattr(model, 'bbox_head', None)
    for name, child in head.named_children() if isinstance(head, nn.Module) else ():
        levels = list(child) if isinstance(child, nn.ModuleList) else [child]
        if name.endswith('_cls') and all(isinstance(level, nn.Conv2d) for level in levels):
            path = f'bbox_head.{name}'
            taps = [path] if levels == [child] else [f'{path}.{n}' for n in range(len(levels))]
    try:
        if taps:
            scores_of(model, Taps.parse(taps))
    except ValueError:
        return None
    return taps or None


def default_tap(model: nn.Module) -> Taps:
    """The maps that explain by default.

    Args:
        model (nn.Module): A model of mmseg or mmdet.

    Returns:
        Taps: The first level of a segmentor's neck, all levels of a detector's neck, or without a
        neck the last map of the backbone.
    """
    if isinstance(getattr(model, 'neck', None), nn.Module):
        return Taps.parse('neck[0]' if hasattr(model, 'decode_head') else 'neck')
    return Taps.parse('backbone[-1]')
