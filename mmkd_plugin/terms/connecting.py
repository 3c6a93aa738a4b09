"""Connecting: converts the student's maps to the channels and the size of the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.building import build_module, kind_of
from mmkd_plugin.connectors import ConvConnector
from mmkd_plugin.losses.traits import LossTraits
from mmkd_plugin.terms.lines import takes


def build_connectors(
    config: Any, pairs: Sequence[tuple[Tensor, Tensor]], traits: LossTraits, here: str
) -> nn.ModuleList:
    """Builds the connectors of the student's maps, one module for each pair of maps.

    Args:
        config (dict | list | None | 'auto'): The ``connector`` of a
            :class:`~mmkd_plugin.terms.Term`.
        pairs (Sequence[tuple[Tensor, Tensor]]): Maps ``(N, C, H, W)`` of student and teacher.
        traits (LossTraits): Traits of the loss.
        here (str): Name of the term in messages.

    Returns:
        nn.ModuleList: The connectors, ``nn.Identity`` where a map stays as it is; or one connector
        that takes all maps together: its class says so by ``takes_all_maps = True``.

    Raises:
        ValueError: If a list has another length than the maps, or a connector cannot be built.
    """
    kind = _kind(config, here)
    if getattr(kind, 'takes_all_maps', False):
        students, teachers = zip(*pairs)
        channels = dict(
            in_channels=[x.shape[1] for x in students], out_channels=[x.shape[1] for x in teachers]
        )
        module = build_module(config, f'{here}.connector', channels)
        takes(module, ('maps',), f'{here}.connector', 'a connector')
        return nn.ModuleList([module])
    configs = config if isinstance(config, (list, tuple)) else [config] * len(pairs)
    for one in configs:
        kind = _kind(one, here)
        if getattr(kind, 'takes_all_maps', False):
            raise ValueError(
                f'{here}.connector: {kind.__name__} takes all maps together: give one dict, '
                'without a list'
            )
    if len(configs) != len(pairs):
        raise ValueError(
            f'{here}: {len(configs)} connectors for {len(pairs)} maps; give one dict for all or '
            'one for each'
        )
    return nn.ModuleList(_build_one(one, *pair, traits, here) for one, pair in zip(configs, pairs))


def _build_one(
    config: Any, student: Tensor, teacher: Tensor, traits: LossTraits, here: str
) -> nn.Module:
    if config is None:
        return nn.Identity()
    channels = dict(in_channels=student.shape[1], out_channels=teacher.shape[1])
    if config != 'auto':
        module = build_module(config, f'{here}.connector', channels)
        takes(module, ('map',), f'{here}.connector', 'a connector')
        return module
    differ = student.shape[1] != teacher.shape[1]
    fits = traits.needs_same_channels and not traits.needs_raw_maps
    if differ and student.ndim == 4 and fits:
        return ConvConnector(**channels)
    return nn.Identity()


def _kind(config: Any, here: str) -> Any:
    """The class that a config names, None if it names none."""
    kind = config.get('type') if isinstance(config, dict) else None
    return None if kind is None else kind_of(kind, f'{here}.connector')


def convert(connectors: nn.ModuleList, students: Sequence[Tensor]) -> list[Tensor]:
    """Converts the student's maps with their connectors, without resizing.

    Args:
        connectors (nn.ModuleList): See :func:`build_connectors`.
        students (Sequence[Tensor]): Maps of the student.

    Returns:
        list[Tensor]: As many maps.
    """
    if _for_all(connectors):
        return list(connectors[0](list(students)))
    return [connector(student) for connector, student in zip(connectors, students)]


def fit_all(
    connectors: nn.ModuleList,
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    same_size: bool,
) -> list[Tensor]:
    """Converts the student's maps with their connectors and, if needed, resizes them.

    Args:
        connectors (nn.ModuleList): See :func:`build_connectors`.
        students (Sequence[Tensor]): Maps of the student.
        teachers (Sequence[Tensor]): Maps of the teacher.
        same_size (bool): Whether the loss needs the sizes of the teacher's maps.

    Returns:
        list[Tensor]: As many maps.
    """
    if _for_all(connectors):
        students = convert(connectors, students)
        connectors = [nn.Identity()] * len(students)
    pairs = zip(connectors, students, teachers)
    return [fit(connector, s, t, same_size) for connector, s, t in pairs]


def _for_all(connectors: nn.ModuleList) -> bool:
    return len(connectors) == 1 and getattr(connectors[0], 'takes_all_maps', False)


def fit(connector: nn.Module, student: Tensor, teacher: Tensor, same_size: bool) -> Tensor:
    """Converts a student's map with its connector and, if needed, resizes it.

    Args:
        connector (nn.Module): The connector.
        student (Tensor): Map of the student, ``(N, C_s, H_s, W_s)``.
        teacher (Tensor): Map of the teacher, ``(N, C_t, H_t, W_t)``.
        same_size (bool): Whether the loss needs the size of the teacher's map.

    Returns:
        Tensor: ``(N, C, H, W)``.
    """
    size = teacher.shape[2:]
    resize = student.ndim == teacher.ndim == 4 and student.shape[2:] != size and same_size
    if resize and student.shape[2:].numel() > size.numel():  # cheaper than resizing last
        return connector(at_size(student, size))
    student = connector(student)
    return at_size(student, size) if resize else student


def at_size(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes maps ``(N, C, H, W)`` bilinearly to a height and a width."""
    return F.interpolate(maps, size=tuple(size), mode='bilinear', align_corners=False)


def describe(connectors: Sequence[nn.Module], of_teacher: Sequence[nn.Module]) -> str:
    """Describes the connectors of a term for the plan.

    Args:
        connectors (Sequence[nn.Module]): Connectors of the student's maps. Identities are left out.
        of_teacher (Sequence[nn.Module]): Connectors of the teacher's maps.

    Returns:
        str: Such as ``'1×1 conv 8→16 (×2), Paraphraser (teacher)'``, ``''`` if there are none.
    """
    texts = [
        str(getattr(connector, 'summary', type(connector).__name__))
        for connector in connectors
        if not isinstance(connector, nn.Identity)
    ]
    texts += [f'{type(module).__name__} (teacher)' for module in of_teacher]
    unique = list(dict.fromkeys(texts))
    return ', '.join(
        f'{text} (×{texts.count(text)})' if texts.count(text) > 1 else text for text in unique
    )
