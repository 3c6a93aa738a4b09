"""Attention maps: the strength of the activations of a stage at each position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from mmkd_plugin.visualization.figure import Cell, Grid, Scale

LEAST = 16  # positions; a map with fewer shows nothing


def attention(maps: Tensor) -> np.ndarray:
    """The mean of the squares over the channels, as a multiple of its mean over the positions.

    All models and sizes share one scale: 1 is a position of average strength. Attention transfer
    and FRSKD compare the same map, divided by its L2 norm.

    Args:
        maps (Tensor): Activations ``(1, C, H, W)``.

    Returns:
        np.ndarray: ``(H, W)``; all zero if all activations are zero.

    Examples:
        >>> import torch
        >>> attention(torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)).tolist()
        [[0.2, 1.8]]
    """
    strength = maps[0].double().square().mean(0)
    mean = strength.mean()
    return (strength / mean if mean > 0 else strength).numpy()


def cosine(one: np.ndarray, other: np.ndarray) -> float | None:
    """Cosine similarity of two maps.

    Args:
        one (np.ndarray): A map of any shape.
        other (np.ndarray): Another map.

    Returns:
        float | None: From -1 to 1; None if the shapes differ or a map is zero everywhere.
    """
    if one.shape != other.shape:
        return None
    norm = np.linalg.norm(one) * np.linalg.norm(other)
    return float((one * other).sum() / norm) if norm > 0 else None


def attention_grid(
    size: tuple[int, int],
    image: np.ndarray,
    covers: tuple[float, float],
    rows: Sequence[tuple[str, dict[str, Tensor | None]]],
    reference: str | None = None,
) -> Grid | None:
    """The grid of the attention maps of several models, with a column for each stage or level.

    Args:
        size (tuple[int, int]): Width and height of the original image, pixels.
        image (np.ndarray): ``(h, w, 3)``, uint8 RGB.
        covers (tuple[float, float]): Width and height that the maps cover, pixels of the original
            image.
        rows (Sequence[tuple]): For each model its name, and its maps ``(1, C, H, W)`` by their
            places; None for a missing map.
        reference (str, optional): Name of the model with which the others are compared. Defaults to
            None.

    Returns:
        Grid | None: None if no map has enough positions.
    """
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name, _ in rows}
    for name, maps in rows:
        for place, x in maps.items():
            if x is not None and x.shape[2:].numel() >= LEAST:
                found[name][place] = attention(x)
    columns = list(dict.fromkeys(place for maps in found.values() for place in maps))
    if not columns:
        return None
    target = found.get(reference, {})
    cells = []
    for name, _ in rows:
        line: list[Cell | None] = []
        for place in columns:
            heat = found[name].get(place)
            if heat is None:
                line.append(None)
                continue
            like = cosine(heat, target[place]) if place in target and name != reference else None
            caption = f'{heat.shape[0]}×{heat.shape[1]}'
            caption += '' if like is None else f', cosine {like:.2f}'
            line.append(Cell(heat=heat, covers=covers, caption=caption))
        cells.append((name, line))
    scales = [
        Scale.of([maps[place] for maps in found.values() if place in maps], '× its mean', 99.5)
        for place in columns
    ]
    return Grid(size, columns, cells, [Cell(image=image, caption='image')], scales)
