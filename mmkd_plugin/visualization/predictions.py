"""Predictions: label maps or boxes, their errors, and the differences between models."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.colors import to_rgb

from mmkd_plugin.visualization.figure import Box, Cell, Color, Grid, faded
from mmkd_plugin.visualization.scene import Boxes, Labels, Meta

#: Colours that people with any colour vision can tell apart.
WRONG, DIFFERS, IGNORED = '#d55e00', '#a23fb5', '#9aa7b5'
MATCHED, FALSE, MISSED = '#0072b2', '#d55e00', '#e0218a'
IOU = 0.5


def wrong_pixels(prediction: np.ndarray, target: np.ndarray, ignore_index: int = 255) -> np.ndarray:
    """The errors of a label map.

    Args:
        prediction (np.ndarray): Labels ``(H, W)``.
        target (np.ndarray): Labels ``(H, W)`` of the ground truth or of another model.
        ignore_index (int): Label of the pixels that do not count. Defaults to 255.

    Returns:
        np.ndarray: ``(H, W)``: 1 wrong, 0 right, -1 not counted.

    Examples:
        >>> import numpy as np
        >>> wrong_pixels(np.array([[0, 1, 1]]), np.array([[0, 0, 255]])).tolist()
        [[0, 1, -1]]
    """
    return np.where(target == ignore_index, -1, (prediction != target).astype(np.int8))


def differing_pixels(
    prediction: np.ndarray, other: np.ndarray, truth: np.ndarray | None, ignore_index: int = 255
) -> np.ndarray:
    """The differences of two label maps.

    Args:
        prediction (np.ndarray): Labels ``(H, W)``.
        other (np.ndarray): Labels ``(H, W)`` of another model.
        truth (np.ndarray, optional): Labels ``(H, W)`` of the ground truth, to leave out the pixels
            to ignore.
        ignore_index (int): Label of the pixels that do not count. Defaults to 255.

    Returns:
        np.ndarray: ``(H, W)``: 1 different, 0 alike, -1 not counted.
    """
    differ = (prediction != other).astype(np.int8)
    return differ if truth is None else np.where(truth == ignore_index, -1, differ)


def share(errors: np.ndarray) -> float:
    """The share of 1 among 0 and 1.

    Args:
        errors (np.ndarray): ``(H, W)``, as of :func:`wrong_pixels`.

    Returns:
        float: From 0 to 1; NaN if there is neither.
    """
    counted = errors >= 0
    return float((errors[counted] == 1).mean()) if counted.any() else float('nan')


def mean_iou(prediction: np.ndarray, target: np.ndarray, ignore_index: int = 255) -> float:
    """Intersection over union, averaged over the classes in either of two label maps.

    Args:
        prediction (np.ndarray): Labels ``(H, W)``.
        target (np.ndarray): Labels ``(H, W)`` of the ground truth.
        ignore_index (int): Label of the pixels that do not count. Defaults to 255.

    Returns:
        float: From 0 to 1; NaN if no pixel counts.
    """
    counted = target != ignore_index
    p, t = prediction[counted], target[counted]
    ious = [
        ((p == c) & (t == c)).sum() / ((p == c) | (t == c)).sum()
        for c in np.union1d(np.unique(p), np.unique(t))
    ]
    return float(np.mean(ious)) if ious else float('nan')


def match(found: Boxes, target: Boxes, iou: float = IOU) -> tuple[np.ndarray, np.ndarray]:
    """Matches boxes with boxes of the same class, the most confident first, each at most once.

    Args:
        found (Boxes): Boxes with scores.
        target (Boxes): Boxes of the ground truth or of another model.
        iou (float): Least intersection over union of a match. Defaults to 0.5.

    Returns:
        tuple[np.ndarray, np.ndarray]: For each box of ``found`` the number of its match in
        ``target``, -1 without a match, or -2 if it lies in an ignored box; and for each box of
        ``target`` whether it is matched.
    """
    matches = np.full(len(found), -1)
    taken = np.zeros(len(target), bool)
    overlaps = _overlaps(found.corners, target.corners)
    overlaps[found.labels[:, None] != target.labels[None]] = 0
    for n in np.argsort(-found.scores, kind='stable'):
        free = np.where(taken, 0, overlaps[n])
        if len(target) and free.max() >= iou:
            matches[n] = free.argmax()
            taken[matches[n]] = True
    if len(target.ignored) and len(found):
        inside = _overlaps(found.corners, target.ignored, of_first=True).max(1) >= 0.5
        matches[(matches == -1) & inside] = -2
    return matches, taken


def _overlaps(a: np.ndarray, b: np.ndarray, of_first: bool = False) -> np.ndarray:
    """Intersection over union ``(n, m)``, or with ``of_first`` over the area of the first boxes."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = (high - low).clip(0).prod(2)
    areas_a, areas_b = ((x[:, 2:] - x[:, :2]).prod(1) for x in (a, b))
    total = areas_a[:, None] if of_first else areas_a[:, None] + areas_b[None] - both
    return both / np.maximum(total, 1e-9)


def numbers(
    prediction: Labels, truth: Labels | None, teacher: Labels | None, meta: Meta
) -> dict[str, str]:
    """The numbers of a prediction on its image.

    Args:
        prediction (Labels): A label map or boxes.
        truth (Labels, optional): The ground truth, or None.
        teacher (Labels, optional): The teacher's prediction, or None.
        meta (Meta): The classes.

    Returns:
        dict[str, str]: The numbers as text, by their names.
    """
    found: dict[str, str] = {}
    if isinstance(prediction, Boxes):
        if truth is not None:
            matches, taken = match(prediction, truth)
            found['objects found'] = f'{taken.sum()} of {len(truth)}'
            found['false boxes'] = str((matches == -1).sum())
        if teacher is not None:
            _, taken = match(prediction, teacher)
            found["teacher's boxes found"] = f'{taken.sum()} of {len(teacher)}'
        return found
    ignore = meta.ignore_index
    if truth is not None:
        found['mIoU'] = _percent(mean_iou(prediction, truth, ignore))
        found['pixels right'] = _percent(1 - share(wrong_pixels(prediction, truth, ignore)))
    if teacher is not None:
        differ = differing_pixels(prediction, teacher, truth, ignore)
        found['pixels as the teacher'] = _percent(1 - share(differ))
    return found


def _percent(value: float) -> str:
    return '–' if np.isnan(value) else f'{value:.1%}'


def _rgb(color: Color) -> np.ndarray:
    return (np.array(to_rgb(color)) * 255).round().astype(np.uint8)


def painted(labels: np.ndarray, meta: Meta) -> np.ndarray:
    """Paints a label map in the colours of the data set.

    Args:
        labels (np.ndarray): Labels ``(H, W)``.
        meta (Meta): The classes.

    Returns:
        np.ndarray: ``(H, W, 3)``, uint8 RGB.
    """
    palette = np.tile(np.uint8(_rgb(IGNORED)), (max(int(labels.max()), meta.ignore_index) + 1, 1))
    for label in np.unique(labels):
        if label != meta.ignore_index:
            palette[label] = (np.array(meta.color(label)) * 255).round()
    return palette[labels]


def error_picture(errors: np.ndarray, image: np.ndarray, color: Color) -> np.ndarray:
    """Paints errors on a faded image.

    Args:
        errors (np.ndarray): ``(H, W)``, as of :func:`wrong_pixels`.
        image (np.ndarray): ``(h, w, 3)``, uint8 RGB.
        color (Color): Colour of the errors.

    Returns:
        np.ndarray: ``(H, W, 3)``, uint8 RGB.
    """
    picture = faded(_resized(image, errors.shape))
    picture[errors == 1] = _rgb(color)
    picture[errors == -1] = _rgb(IGNORED)
    return picture


def _resized(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    if image.shape[:2] == tuple(shape):
        return image
    return cv2.resize(image, (shape[1], shape[0]), interpolation=cv2.INTER_AREA)


def segmentation_grid(
    size: tuple[int, int],
    image: np.ndarray,
    truth: np.ndarray | None,
    rows: Sequence[tuple[str, np.ndarray]],
    meta: Meta,
    reference: str | None = None,
) -> Grid:
    """The grid of the label maps of several models, their errors and their differences.

    Args:
        size (tuple[int, int]): Width and height of the original image, pixels.
        image (np.ndarray): ``(h, w, 3)``, uint8 RGB.
        truth (np.ndarray, optional): Labels ``(H, W)`` of the ground truth, or None.
        rows (Sequence[tuple]): For each model its name and its labels ``(H, W)``.
        meta (Meta): Names and colours of the classes.
        reference (str, optional): Name of the model with which the others are compared. Defaults to
            None.

    Returns:
        Grid: With a row for each model.
    """
    ignore, target = meta.ignore_index, dict(rows).get(reference)
    columns = ['prediction']
    columns += [] if truth is None else ['errors']
    columns += [] if target is None or len(rows) == 1 else [f'differs from {reference}']
    cells = []
    for name, labels in rows:
        iou = '' if truth is None else f'mIoU {_percent(mean_iou(labels, truth, ignore))}'
        line: list[Cell | None] = [Cell(image=painted(labels, meta), caption=iou)]
        if truth is not None:
            errors = wrong_pixels(labels, truth, ignore)
            picture = error_picture(errors, image, WRONG)
            line.append(Cell(image=picture, caption=f'{_percent(share(errors))} wrong'))
        if len(columns) > len(line):
            differ = differing_pixels(labels, target, truth, ignore)
            picture = error_picture(differ, image, DIFFERS)
            cell = Cell(image=picture, caption=f'{_percent(share(differ))} differ')
            line.append(None if name == reference else cell)
        cells.append((name, line))
    side = [Cell(image=image, caption='image')]
    maps = [labels for _, labels in rows]
    if truth is not None:
        side.append(Cell(image=painted(truth, meta), caption='ground truth'))
        maps.append(truth)
    present = sorted({int(c) for labels in maps for c in np.unique(labels)} - {ignore})
    classes = [(meta.name(c), meta.color(c)) for c in present]
    states: list[tuple[str, Color]] = [] if truth is None else [('wrong', WRONG)]
    if truth is not None and (truth == ignore).any():
        states.append(('ignored', IGNORED))
    if columns[-1].startswith('differs'):
        states.append((columns[-1], DIFFERS))
    return Grid(size, columns, cells, side, legend=[classes, states])


def detection_grid(
    size: tuple[int, int],
    image: np.ndarray,
    truth: Boxes | None,
    rows: Sequence[tuple[str, Boxes]],
    meta: Meta,
    reference: str | None = None,
) -> Grid:
    """The grid of the boxes of several models, against the ground truth and the teacher's boxes.

    Args:
        size (tuple[int, int]): Width and height of the original image, pixels.
        image (np.ndarray): ``(h, w, 3)``, uint8 RGB.
        truth (Boxes, optional): Boxes of the ground truth, or None.
        rows (Sequence[tuple]): For each model its name and its boxes.
        meta (Meta): Names and colours of the classes.
        reference (str, optional): Name of the model with which the others are compared. Defaults to
            None.

    Returns:
        Grid: With a row for each model.
    """
    target = dict(rows).get(reference)
    columns = ['prediction']
    columns += [] if truth is None else ['against ground truth']
    columns += [] if target is None or len(rows) == 1 else [f'against {reference}']
    ground = faded(image)
    cells = []
    for name, found in rows:
        boxes = [
            Box(corners, f'{meta.name(label)} {score:.2f}', meta.color(label))
            for corners, label, score in zip(found.corners, found.labels, found.scores)
        ]
        line: list[Cell | None] = [Cell(image=image, boxes=boxes, caption=f'{len(found)} boxes')]
        if truth is not None:
            line.append(_compared(ground, found, truth, meta))
        if len(columns) > len(line):
            line.append(None if name == reference else _compared(ground, found, target, meta))
        cells.append((name, line))
    side = [Cell(image=image, caption='image')]
    if truth is not None:
        boxes = [
            Box(corners, meta.name(label), meta.color(label))
            for corners, label in zip(truth.corners, truth.labels)
        ]
        boxes += [Box(corners, '', IGNORED) for corners in truth.ignored]
        side.append(Cell(image=image, boxes=boxes, caption='ground truth'))
    legend: list[tuple[str, Color]] = []
    if len(columns) > 1:
        legend = [('matched', MATCHED), ('false', FALSE), ('missed (dashed)', MISSED)]
    if truth is not None and len(truth.ignored):
        legend.append(('ignored', IGNORED))
    return Grid(size, columns, cells, side, legend=[legend])


def _compared(ground: np.ndarray, found: Boxes, target: Boxes, meta: Meta) -> Cell:
    """The picture of the boxes of a model against others."""
    matches, taken = match(found, target)
    colors = {-1: FALSE, -2: IGNORED}
    boxes = [
        Box(c, meta.name(label), MISSED, dashed=True)
        for c, label in zip(target.corners[~taken], target.labels[~taken])
    ]
    boxes += [
        Box(corners, meta.name(label), colors.get(int(n), MATCHED))
        for corners, label, n in zip(found.corners, found.labels, matches)
    ]
    counts = f'{taken.sum()} matched, {(matches == -1).sum()} false, {(~taken).sum()} missed'
    return Cell(image=ground, boxes=boxes, caption=counts)
