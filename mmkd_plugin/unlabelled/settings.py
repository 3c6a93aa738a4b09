"""Unlabelled: the settings of images without labels in the config of a Distiller."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from mmkd_plugin.annotations import fits
from mmkd_plugin.building import check_keys
from mmkd_plugin.losses.numerics.checks import positive_number, weight
from mmkd_plugin.words import short

KEYS = ('dataset', 'ratio', 'only', 'pseudo_labels')

#: How far an image may be from a whole one: ratios such as 1/3 are rounded.
ROUNDING = 1e-6


@dataclass(frozen=True)
class PseudoLabels:
    """Labels that a teacher gives to images without labels.

    Args:
        threshold (float): Confidence from 0 to 1, below which there is no label.
        loss_weight (float): Factor on the student's own losses on these images. Defaults to 1.
        teacher (str, optional): Name of the teacher. Defaults to None: there is one only.
    """

    threshold: float
    loss_weight: float = 1.0
    teacher: str | None = None

    @classmethod
    def from_config(cls, config: Any) -> PseudoLabels | None:
        """Reads ``unlabelled.pseudo_labels``: a threshold, or a dict with it.

        Raises:
            ValueError: If a key is unknown, or a value cannot be used.
        """
        here = 'unlabelled.pseudo_labels'
        if config is None:
            return None
        key = f'{here}.threshold' if isinstance(config, dict) else here
        if not isinstance(config, dict):
            config = dict(threshold=config)
        check_keys(here, config, ('threshold', 'loss_weight', 'teacher'))
        threshold = config.get('threshold')
        if not fits(threshold, float) or not 0 <= threshold < 1:
            raise ValueError(
                f'{key} must be the least confidence of a label, a number from 0 to below 1, '
                f'such as 0.9, got {short(threshold)}'
            )
        try:
            factor = weight('loss_weight', config.get('loss_weight', 1.0))
        except (TypeError, ValueError) as error:
            raise ValueError(f'{here}.{error}') from error
        if factor == 0:
            raise ValueError(f'{here}.loss_weight=0 teaches nothing: leave `pseudo_labels` out')
        if not fits(config.get('teacher'), str | None):
            raise ValueError(
                f'{here}.teacher must be the name of a teacher, got {short(config["teacher"])}'
            )
        return cls(threshold, factor, config.get('teacher'))


@dataclass(frozen=True)
class Unlabelled:
    """Images without labels, for the terms alone.

    Args:
        dataset (str | dict): A folder of images, or the config of a data set. Labels that it has
            are not read. Without a pipeline it gets that of the training set.
        ratio (float): Images of it for each labelled one. Defaults to 1.
        only (bool): Whether they take the place of the labelled ones. Then there is no task loss.
            Defaults to False.
        pseudo (PseudoLabels, optional): Labels by a teacher. Defaults to None: there are none.

    Examples:
        >>> Unlabelled.from_config(dict(dataset='data/more', ratio=0.5)).images(8)
        4
    """

    dataset: Any
    ratio: float = 1.0
    only: bool = False
    pseudo: PseudoLabels | None = None

    @classmethod
    def from_config(cls, config: Any) -> Unlabelled | None:
        """Reads the ``unlabelled`` of a Distiller's config.

        Args:
            config (dict, optional): The config; None if there are no such images.

        Returns:
            Unlabelled | None: The settings.

        Raises:
            ValueError: If a key is missing or unknown, or a value cannot be used.
        """
        if config is None:
            return None
        if isinstance(config, str):
            raise ValueError(f"unlabelled: expected dict(dataset='{config}'), got {config!r}")
        if not isinstance(config, dict):
            raise ValueError(
                f"unlabelled: expected dict(dataset='data/more', ratio=1), got {short(config)}"
            )
        check_keys('unlabelled', config, KEYS)
        dataset = config.get('dataset')
        if not fits(dataset, str | dict):
            given = f', got {short(dataset)}' if 'dataset' in config else ''
            raise ValueError(
                "unlabelled has no `dataset`: a folder of images, such as 'data/more', or "
                f'dict(type=..., ...){given}'
            )
        if isinstance(dataset, dict) and 'type' not in dataset:
            raise ValueError(
                "unlabelled.dataset has no `type`, such as 'BaseSegDataset'; for a folder of "
                "images give its name: dataset='data/more'"
            )
        only = config.get('only', False)
        if not isinstance(only, bool):
            raise ValueError(f'unlabelled.only must be True or False, got {short(only)}')
        if only and 'ratio' in config:
            raise ValueError(
                'unlabelled.ratio: with only=True there are no labelled images; leave one of the '
                'two out'
            )
        try:
            ratio = positive_number('ratio', config.get('ratio', 1.0))
        except (TypeError, ValueError) as error:
            raise ValueError(f'unlabelled.{error}') from error
        return cls(dataset, ratio, only, PseudoLabels.from_config(config.get('pseudo_labels')))

    def images(self, batch_size: int) -> int:
        """How many of them come with a batch of labelled images.

        Args:
            batch_size (int): Labelled images of a batch, in each process.

        Raises:
            ValueError: If it is no whole number of images.
        """
        count = self.ratio * batch_size
        if round(count) < 1 or abs(count - round(count)) > ROUNDING * batch_size:
            near = Fraction(max(round(count), 1), batch_size)
            raise ValueError(
                f'unlabelled.ratio={self.ratio:g} gives {count:g} images for the '
                f'{batch_size} of a batch (train_dataloader.batch_size), and it has to be a whole '
                f'number: take {near}, say'
            )
        return round(count)
