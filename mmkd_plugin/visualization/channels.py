"""Channel-wise activation: the peaks of each channel, as in channel-wise distillation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmkd_plugin.visualization.figure import Cell, Grid, Scale


def channel_distribution(maps: Tensor, tau: float = 1.0) -> Tensor:
    """The softmax of each channel over its positions.

    Args:
        maps (Tensor): Activations ``(1, C, H, W)``.
        tau (float): Temperature of the softmax. Defaults to 1.0.

    Returns:
        Tensor: ``(C, H, W)``, float64; each channel sums to 1.
    """
    flat = maps[0].double().flatten(1) / tau
    return flat.softmax(1).view(maps.shape[1:])


def most_active(maps: Tensor, count: int, tau: float = 1.0) -> list[int]:
    """The channels with the most concentrated distributions, those of least entropy.

    Args:
        maps (Tensor): Activations ``(1, C, H, W)``.
        count (int): Number of channels.
        tau (float): Temperature of the softmax. Defaults to 1.0.

    Returns:
        list[int]: Numbers of channels, the most concentrated first.
    """
    p = channel_distribution(maps, tau).flatten(1)
    entropy = -torch.special.xlogy(p, p).sum(1)
    return entropy.argsort(stable=True)[:count].tolist()


def channels_grid(
    size: tuple[int, int],
    image: np.ndarray,
    covers: tuple[float, float],
    rows: Sequence[tuple[str, Tensor]],
    count: int = 5,
    tau: float = 1.0,
    names: Sequence[str] | None = None,
    first: Sequence[int] = (),
) -> Grid:
    """The grid of the most active channels of several models.

    If all models have the same number of channels, all show the most active channels of the first
    model. Otherwise the channels do not correspond, and each model shows its own.

    Args:
        size (tuple[int, int]): Width and height of the original image, pixels.
        image (np.ndarray): ``(h, w, 3)``, uint8 RGB.
        covers (tuple[float, float]): Width and height that the maps cover, pixels of the original
            image.
        rows (Sequence[tuple]): For each model its name and its map ``(1, C, H, W)``.
        count (int): Number of channels. Defaults to 5.
        tau (float): Temperature of the softmax. Defaults to 1.0.
        names (Sequence[str], optional): Names of the channels. Defaults to None: their numbers.
        first (Sequence[int]): Channels to show before the most active ones. Defaults to ``()``.

    Returns:
        Grid: With a row for each model and a column for each channel.
    """
    same = len({maps.shape[1] for _, maps in rows}) == 1
    distributions, chosen = {}, {}
    for name, maps in rows:
        p = channel_distribution(maps, tau)
        distributions[name] = (p * p[0].numel()).numpy()
        leader = rows[0][1] if same else maps
        wanted = [*first, *most_active(leader, leader.shape[1], tau)]
        chosen[name] = list(dict.fromkeys(wanted))[:count]
    name_of = names.__getitem__ if names else 'channel {}'.format
    columns = [
        name_of(channel) if same else f'rank {rank + 1}'
        for rank, channel in enumerate(chosen[rows[0][0]])
    ]
    cells, scales = [], []
    for name, _ in rows:
        heats = [distributions[name][channel] for channel in chosen[name]]
        line: list[Cell | None] = [
            Cell(heat=heat, covers=covers, caption='' if same else name_of(channel))
            for heat, channel in zip(heats, chosen[name])
        ]
        cells.append((name, line + [None] * (len(columns) - len(line))))
    for rank in range(len(columns)):
        shown = [line[rank].heat for _, line in cells if line[rank] is not None]
        scales.append(Scale.of(shown, '× uniform', 99.8, gamma=0.5))
    for _, line in cells:  # a later model may have more channels than the first
        del line[len(columns) :]
    return Grid(size, columns, cells, [Cell(image=image, caption='image')], scales)
