"""Few labels: which images keep them, and the purposes of such runs."""

from __future__ import annotations

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from mmkd_plugin.cli import is_distilled

#: The parts of the labels, and the seeds of each.
FEW = (0.01, 0.1, 0.5)
FEW_SEEDS = 5
#: Weights that are tried with a part of the labels. A share of the task's gradient may vanish with
#: few labels, so numbers are among them.
TRIED = ('auto:2.5', 'auto:12.5', 3.0, 30.0)
TRIED_AT = 0.1


def purpose_of(share: float, trial: bool = False) -> str:
    """The ``purpose`` of a run with a part of the labels.

    Examples:
        >>> purpose_of(0.1), purpose_of(0.1, trial=True)
        ('labels:0.1', 'labels:0.1:trial')
    """
    return f'labels:{share:g}{":trial" if trial else ""}'


def share_of(purpose: str) -> float | None:
    """The part of the labels that a run with this purpose has; None if it has all.

    Examples:
        >>> share_of('labels:0.1:trial'), share_of('counted')
        (0.1, None)
    """
    word, _, rest = purpose.partition(':')
    return float(rest.partition(':')[0]) if word == 'labels' else None


def is_trial(purpose: str) -> bool:
    """Whether a run is one of the trials that choose a weight."""
    return purpose.endswith('trial')


def keep_labels(cfg: Config, share: float, seed: int) -> None:
    """Leaves a run a part of the labels; images without labels are the rest.

    Batches are drawn from an endless order, because a data set of a few images is soon through.

    Args:
        cfg (Config): Of a student alone, or of a recipe with ``unlabelled``; changed in place. Its
            training set has no wrapper.
        share (float): The part, from 0 to 1.
        seed (int): Seed of the run, which chooses the images.
    """
    loader = cfg.train_dataloader
    few, rest = chosen_images(count(cfg), share, seed)
    loader.sampler = dict(type='InfiniteSampler', shuffle=True)
    loader.dataset.indices = few
    if is_distilled(cfg):
        cfg.model.unlabelled.dataset = dict(loader.dataset, indices=rest)


def count(cfg: Config) -> int:
    """The training images that have labels."""
    init_default_scope(cfg.default_scope)
    return len(DATASETS.build(dict(cfg.train_dataloader.dataset, pipeline=[], indices=None)))


def chosen_images(total: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """The images that keep their labels, and the others.

    A larger share has the images of a smaller one, too.

    Args:
        total (int): How many there are.
        share (float): The part with labels.
        seed (int): Another seed chooses others.

    Examples:
        >>> [chosen_images(10, share, seed=0)[0] for share in (0.1, 0.3)]
        [[4], [2, 4, 6]]
    """
    order = np.random.default_rng(seed).permutation(total).tolist()
    few = max(1, round(total * share))
    return sorted(order[:few]), sorted(order[few:])
