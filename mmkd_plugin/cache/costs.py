"""Costs: what storing maps in fewer bytes costs, in bytes and in targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mmkd_plugin.cache.records import human_size

#: Probabilities below it count as it, so that their logarithm is finite.
TINY = 1e-30

#: Pairs of positions whose distances are compared, for each map.
PAIRS = 256


@dataclass
class Cost:
    """What one tap costs, over some images.

    Args:
        tau (float, optional): Temperature of the probabilities that are compared; None for maps
            that are no class scores.
        mixed (bool): Whether channels were projected. Defaults to False.
    """

    tau: float | None = None
    mixed: bool = False
    stored: list[int] = field(default_factory=list)
    half: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    largest: list[float] = field(default_factory=list)
    same: list[float] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)

    def add(self, exact: Sequence[np.ndarray], kept: Sequence[np.ndarray], size: int) -> None:
        """Adds an image.

        Args:
            exact (Sequence[np.ndarray]): The teacher's maps, ``(C, H, W)``.
            kept (Sequence[np.ndarray]): The maps that come back from the cache.
            size (int): Bytes of the record.
        """
        self.stored.append(size)
        self.half.append(sum(2 * maps.size for maps in exact))
        for ours, theirs in zip(exact, kept):
            if self.mixed:
                self.errors.append(distance_error(ours, theirs))
            elif self.tau is not None:
                whole, again = softmax(ours / self.tau), softmax(theirs / self.tau)
                off = np.abs(whole - again)
                self.errors.append(float(off.mean()))
                self.largest.append(float(off.max()))
                self.divergences.append(divergence(whole, again))
                self.same.append(float((ours.argmax(0) == theirs.argmax(0)).mean()))
            else:
                spread = float(ours.std()) or 1.0
                self.errors.append(float(np.sqrt(((ours - theirs) ** 2).mean())) / spread)

    def text(self) -> str:
        """Bytes and errors in words."""
        each, half = np.mean(self.stored), np.mean(self.half)
        size = f'{human_size(each)} each, {each / half:.1%} of float16'
        error = np.mean(self.errors)
        if self.mixed:
            return f'{size}; distances between positions off by {error:.1%}'
        if self.tau is not None:
            at = '' if self.tau == 1 else f' at temperature {self.tau:g}'
            return (
                f'{size}; probabilities{at} off by {error:.5f} in the mean and '
                f'{max(self.largest):.3f} at most, divergence {np.mean(self.divergences):.5f}, the '
                f'same class in {np.mean(self.same):.2%}'
            )
        return f'{size}; off by {error:.2%} of the spread'


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities of classes, ``(C, H, W)``."""
    shares = np.exp(scores - scores.max(0))
    return shares / shares.sum(0)


def divergence(exact: np.ndarray, kept: np.ndarray) -> float:
    """The Kullback-Leibler divergence of probabilities ``(C, H, W)`` from exact ones, in nats."""
    log = np.log(np.maximum(exact, TINY)) - np.log(np.maximum(kept, TINY))
    return float((exact * log).sum(0).mean())


def distance_error(exact: np.ndarray, kept: np.ndarray) -> float:
    """How far the distances between positions of two maps differ, relative, in the mean.

    Args:
        exact (np.ndarray): ``(C, H, W)``.
        kept (np.ndarray): ``(c, H, W)``, of any number of channels.
    """
    places = np.random.default_rng(0).integers(exact[0].size, size=(2, PAIRS))
    far, near = (
        np.linalg.norm(flat[:, places[0]] - flat[:, places[1]], axis=0)
        for flat in (maps.reshape(len(maps), -1) for maps in (exact, kept))
    )
    apart = far > 0
    return float(np.abs(near[apart] / far[apart] - 1).mean()) if apart.any() else 0.0
