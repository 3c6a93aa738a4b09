"""Transforms that keep images: their caches are filled again when a run is resumed.

``CachedMosaic`` and ``CachedMixUp`` mix in images that the same process has loaded before. No
checkpoint has them. But each image has random numbers of its own. So loading the last images once
more gives the caches that a run which never ended would have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from mmkd_plugin.cache.images import all_transforms, leaves

#: An image that is loaded again: its index, and the key of its random numbers.
Image = tuple[Any, tuple[int, ...]]

#: Two caches that lose images at random stay different with a probability below ``exp(-SURE)``.
SURE = 20


def keeps_images(transform: Any) -> bool:
    """Whether a transform has a cache of images."""
    return hasattr(transform, 'results_cache')


def images_to_load(dataset: Any) -> int | None:
    """How many images before one decide what the transforms of a data set make of it.

    A cache that loses its oldest image holds the last ones. One that loses a random image becomes
    that of the other run little by little: both lose the image at the same place, and the images
    behind that place stay the same in both.

    Args:
        dataset (BaseDataset): The training data, built, or a wrapper.

    Returns:
        int | None: The number; 0 if no transform keeps images. None if it is not known, because
        some images pass by a cache.
    """
    every = [one for one in all_transforms(dataset) if keeps_images(one)]
    parts = list(leaves(dataset))
    steps = getattr(getattr(parts[0], 'pipeline', None), 'transforms', ())
    reached = [one for one in steps if keeps_images(one) and hasattr(one, 'random_pop')]
    if len(reached) < len(every) or (every and len(parts) > 1):
        return None
    return sum(_steps(one.max_cached_images, one.random_pop) for one in reached)


def _steps(size: int, random_pop: bool) -> int:
    """After how many images a cache does not depend on those before."""
    return size + math.ceil((size + 1) * (math.log(size) + SURE)) if random_pop else size


def last_images(
    history: Iterable[tuple[int, Sequence[Image]]], workers: int, count: int, first: int
) -> list[list[Image]]:
    """What each process has loaded last.

    Args:
        history (Iterable[tuple[int, Sequence[Image]]]): The batches until now, the last one first:
            the process that has loaded it, and its images.
        workers (int): Number of processes.
        count (int): So many images at least, if there are as many.
        first (int): The process that would load the next batch.

    Returns:
        list[list[Image]]: The images of that process, oldest first, then those of the next one.

    Examples:
        >>> history = [(1, [(7, (0,))]), (0, [(5, (0,))]), (1, [(3, (0,))])]
        >>> [[index for index, _ in images] for images in last_images(history, 2, 2, first=1)]
        [[3, 7], [5]]
    """
    found: list[list[Image]] = [[] for _ in range(workers)]
    for worker, images in history:
        if all(len(one) >= count for one in found):
            break
        if len(found[worker]) < count:
            found[worker] = [*images, *found[worker]]
    return [found[(first + n) % workers] for n in range(workers)]
