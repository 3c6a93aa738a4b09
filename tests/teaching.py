"""Teachers by themselves: prepared for taps, and asked about a batch, without a Distiller."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmkd_plugin.taps import Maps, Tap, Taps
from mmkd_plugin.taps.dry_run import DryRun
from mmkd_plugin.teachers import Batch, Preview, Teacher, Trial
from mmkd_plugin.views import View

CPU = torch.device('cpu')


def views_of(taps: Sequence[Tap], kind: str = 'maps') -> list[View]:
    """A view of each tap."""
    return [View(Taps((tap,)), kind) for tap in taps]


def prepare(
    teacher: Teacher, preprocessor: nn.Module, taps: Sequence[Tap], kind: str = 'maps'
) -> Preview:
    """Prepares a teacher for a student of which the preprocessor alone is known."""
    return teacher.prepare(Trial(None, preprocessor, DryRun()), views_of(taps, kind), CPU)


def taught(
    teacher: Teacher, inputs: Tensor, data_samples: list | None, taps: Sequence[Tap]
) -> dict[Tap, Maps]:
    """The maps that a teacher shows of a batch, by their taps."""
    views = views_of(taps)
    shown = teacher.teach(Batch(inputs, data_samples), views).shown
    return {tap: shown[view] for tap, view in zip(taps, views, strict=True)}
