"""The teacher of a metric."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mmkd_plugin.taps.example import random_state_kept
from mmkd_plugin.teachers.classes import order_between
from mmkd_plugin.teachers.configs import teacher_configs
from mmkd_plugin.teachers.online import OnlineTeacher

EXAMPLE = "teacher=dict(config='...', checkpoint='...')"


class FrozenTeacher:
    """A trained model that predicts the images of a test as in a test of its own.

    Args:
        teacher (dict): ``config``, ``checkpoint`` and ``strict`` of a
            :class:`~mmkd_plugin.teachers.Teacher`.
        owner (str): Name of the metric in messages.

    Raises:
        ValueError: If there is no teacher, or its config or checkpoint cannot be used.
        FileNotFoundError: If its config or checkpoint is missing.
    """

    def __init__(self, teacher: dict | None, owner: str) -> None:
        if not isinstance(teacher, dict):
            got = '' if teacher is None else f', got {teacher!r}'
            raise ValueError(
                f"{owner} needs a teacher: {EXAMPLE}{got}. This plugin's tools/test.py fills in "
                'the one of a distilled config'
            )
        if 'type' in teacher:
            raise ValueError(
                f'{owner} needs a trained teacher that can run alone: {EXAMPLE}, not '
                f'type={teacher["type"]!r}'
            )
        (config,) = teacher_configs(teacher).values()
        with random_state_kept():
            teacher = OnlineTeacher(**config)
        self.model, self.class_names = teacher.model, teacher.class_names
        self.owner = owner

    def check_classes(self, classes: tuple[str, ...]) -> None:
        """Refuses a teacher with another number of classes than the data set, or another order.

        Args:
            classes (tuple[str, ...]): The classes of the data set.

        Raises:
            ValueError: If modules of the teacher have ``num_classes``, but none has the number of
                the data set; or if it is known to have other classes, or another order of them.
        """
        known = {getattr(module, 'num_classes', None) for module in self.model.modules()}
        known = sorted(number for number in known if isinstance(number, int))
        if known and len(classes) not in known:
            raise ValueError(
                f'{self.owner}: the teacher predicts {known[-1]} classes and the data set has '
                f'{len(classes)} ({", ".join(classes[:4])}, ...); take a teacher of this data set'
            )
        if self.class_names is None or len(self.class_names) != len(classes):
            return
        order = order_between(tuple(classes), self.class_names)
        if order is None or not order.identity:
            kind = 'other classes than' if order is None else 'another order of the classes of'
            raise ValueError(
                f'{self.owner}: the teacher was trained on {kind} this data set '
                f'({", ".join(self.class_names[:4])}, ...); take a teacher of this data set'
            )

    @torch.no_grad()
    def predict(self, data_batch: Any, device: torch.device) -> list[dict]:
        """Predicts a batch, at the size of the original images.

        Args:
            data_batch (Any): A batch of the data loader, not yet preprocessed.
            device (torch.device): Device of the forward.

        Returns:
            list[dict]: A data sample with the predictions for each image.
        """
        return [sample.to_dict() for sample in self.on(device).test_step(data_batch)]

    def on(self, device: torch.device) -> nn.Module:
        """Moves the model to a device and returns it.

        Args:
            device (torch.device): The device.
        """
        self.model.to(device)
        return self.model
