"""Taught maps: what teachers show of a batch for the teacher connectors of some terms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.device import get_device
from torch import Tensor, nn

from mmkd_plugin.taps import as_list
from mmkd_plugin.taps.dry_run import DryRun
from mmkd_plugin.taps.example import random_state_kept
from mmkd_plugin.teachers.base import Batch, Trial
from mmkd_plugin.teachers.configs import build_teacher, kind_of_teacher, teacher_configs
from mmkd_plugin.terms.term import Term
from mmkd_plugin.views import View


class TaughtMaps:
    """The teachers of some terms, without a student.

    Args:
        teacher (dict | list[dict]): One or several teachers, as for the Distiller.
        lines (dict[str, dict]): The terms, as for the Distiller.
        preprocessor (nn.Module): The student's data preprocessor.

    Attributes:
        teachers (dict[str, Teacher]): The teachers of these terms by their names.
        first (dict[str, list[Tensor]]): For each term the maps of a made-up image.

    Raises:
        ValueError: If one of the teachers is trained along with the student.
    """

    def __init__(
        self, teacher: dict | Sequence[dict], lines: dict[str, dict], preprocessor: nn.Module
    ) -> None:
        configs = teacher_configs(teacher)
        self._terms = [Term.from_config(name, line, list(configs)) for name, line in lines.items()]
        used = {term.teacher for term in self._terms}
        for name in used:
            if kind_of_teacher(configs[name]).learns:
                raise ValueError(f"'{name}' is trained along: it cannot have a `teacher_connector`")
        with random_state_kept():
            self.teachers = {name: build_teacher(configs[name]) for name in configs if name in used}
        trial, device = Trial(None, preprocessor, DryRun()), torch.device(get_device())
        self.first: dict[str, list[Tensor]] = {}
        for name, one in self.teachers.items():
            shown = one.prepare(trial, self._views(name), device).shown
            self.first |= {t.name: as_list(shown[t.teacher_view]) for t in self._terms_of(name)}

    def of(self, inputs: Tensor, data_samples: list | None) -> Iterator[tuple[str, list[Tensor]]]:
        """Yields the names of the terms and what their teachers show of a batch.

        Args:
            inputs (Tensor): Images ``(N, C, H, W)`` from the data preprocessor.
            data_samples (list, optional): Their data samples.

        Yields:
            tuple[str, list[Tensor]]: Name of a term, and its maps ``(N, C, H, W)``.
        """
        for name, teacher in self.teachers.items():
            lesson = teacher.teach(Batch(inputs, data_samples), self._views(name))
            for term in self._terms_of(name):
                yield term.name, as_list(lesson.shown[term.teacher_view])

    def apply_to_tensors(self, function: Any, recurse: bool = True) -> None:
        """Follows a module to another device or type, as :meth:`Teacher.apply_to_tensors` does."""
        for teacher in self.teachers.values():
            teacher.apply_to_tensors(function, recurse)

    def _terms_of(self, teacher: str) -> list[Term]:
        return [term for term in self._terms if term.teacher == teacher]

    def _views(self, teacher: str) -> list[View]:
        return [term.teacher_view for term in self._terms_of(teacher)]
