"""The teacher of a measure."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mmkd_plugin.taps.example import random_state_kept
from mmkd_plugin.teachers.configs import teacher_configs
from mmkd_plugin.teachers.online import Teacher

EXAMPLE = "teacher=dict(config='...', checkpoint='...')"


class FrozenTeacher:
    """A trained model that predicts the images of a test as it would alone.

    Args:
        teacher (dict): ``config``, ``checkpoint`` and ``strict`` of a :class:`Teacher`.
        owner (str): What messages call the measure that asks.

    Raises:
        ValueError: If there is no teacher, or its config or checkpoint is not usable.
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
            self.model = Teacher(**config).model
        self.owner = owner

    def check_classes(self, classes: tuple[str, ...]) -> None:
        """Refuses a teacher none of whose modules knows the data set's number of classes."""
        known = {getattr(module, 'num_classes', None) for module in self.model.modules()}
        known = sorted(number for number in known if isinstance(number, int))
        if known and len(classes) not in known:
            raise ValueError(
                f'{self.owner}: the teacher predicts {known[-1]} classes and the data set has '
                f'{len(classes)} ({", ".join(classes[:4])}, ...); take a teacher of this data set'
            )

    @torch.no_grad()
    def predict(self, data_batch: Any, device: torch.device) -> list[dict]:
        """Data samples with the teacher's predictions, at the size of the original images.

        Args:
            data_batch (Any): What the data loader gave, not yet preprocessed.
            device (torch.device): Where to run.

        Returns:
            list[dict]: One for each image.
        """
        return [sample.to_dict() for sample in self.on(device).test_step(data_batch)]

    def on(self, device: torch.device) -> nn.Module:
        """The model, moved to a device."""
        return self.model.to(device)
