"""Through: the student's maps run through a part of the teacher before the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmkd_plugin.annotations import fits
from mmkd_plugin.building import check_keys
from mmkd_plugin.losses.traits import LossTraits
from mmkd_plugin.taps import Taps
from mmkd_plugin.terms.connecting import build_connectors, convert, fit_all
from mmkd_plugin.words import short

#: Added to a standard deviation that divides.
EPS = 1e-6


@dataclass(frozen=True)
class Through:
    """The entrance of the student's maps into a part of the teacher.

    Args:
        taps (Taps): Where the maps go in: the part begins behind these places and ends at the
            teacher's taps.
        align (bool): Whether each channel of the maps gets mean and deviation of the teacher's own
            channel there. Defaults to True.

    Examples:
        >>> Through.from_config('distill.cross', 'bbox_head.cls_convs.3@input').align
        True
    """

    taps: Taps
    align: bool = True

    @classmethod
    def from_config(cls, here: str, config: Any) -> Through | None:
        """Reads the ``through`` of a term.

        Args:
            here (str): Name of the term in messages.
            config (str | list[str] | dict, optional): A tap of the teacher or a list of them, or
                ``dict(tap=..., align=True)``.

        Returns:
            Through | None: None if the term has none.

        Raises:
            ValueError: If it has another form.
        """
        if config is None:
            return None
        given = config if isinstance(config, dict) else dict(tap=config)
        check_keys(f'{here}.through', given, ('tap', 'align'))
        align = given.get('align', True)
        if not fits(given.get('tap'), str | list[str]):
            raise ValueError(
                f'{here}.through is the place in the teacher where the maps of the student go in: '
                "a tap, such as 'bbox_head.cls_convs.3@input', a list of taps, or "
                f'dict(tap=..., align=True), got {short(config)}'
            )
        if not isinstance(align, bool):
            raise ValueError(f'{here}.through.align must be True or False, got {short(align)}')
        try:
            return cls(Taps.parse(given['tap']), align)
        except ValueError as error:
            raise ValueError(f'{here}.through: {error}') from None

    def connectors(
        self, config: Any, students: Sequence[Tensor], own: Sequence[Tensor], here: str, tap: Taps
    ) -> nn.ModuleList:
        """Builds the connectors from the student's maps to those of the teacher at the entrance.

        Args:
            config (dict | list | None | 'auto'): The ``connector`` of the term.
            students (Sequence[Tensor]): Maps of the student, ``(N, C, H, W)``.
            own (Sequence[Tensor]): Maps of the teacher at the entrance.
            here (str): Name of the term in messages.
            tap (Taps): The taps in the student, for messages.

        Returns:
            nn.ModuleList: The connectors.

        Raises:
            ValueError: If the channels do not fit behind them.
        """
        for student, teacher in zip(students, own):
            if student.ndim != 4 or teacher.ndim != 4:
                shapes = f'{tuple(student.shape)} and {tuple(teacher.shape)}'
                raise ValueError(
                    f"{here}: '{tap}' of the student and '{self.taps}' of the teacher must be maps "
                    f'(N, C, H, W), and in a trial they are {shapes}'
                )
        pairs = list(zip(students, own))
        modules = build_connectors(config, pairs, LossTraits(), here)
        for student, teacher in zip(convert(modules.eval(), students), own):
            ours, theirs = student.shape[1], teacher.shape[1]
            if ours != theirs:
                where = 'behind its connector ' if config is not None else ''
                raise ValueError(
                    f"{here}: '{tap}' of the student has {ours} channels {where}and "
                    f"'{self.taps}', where they go into the teacher, has {theirs}; leave "
                    '`connector` out so that a 1×1 convolution is added, or name one that gives '
                    f'{theirs}'
                )
        return modules.train()

    def enter(
        self, connectors: nn.ModuleList, students: Sequence[Tensor], own: Sequence[Tensor]
    ) -> list[Tensor]:
        """Makes the student's maps ready to go in.

        Args:
            connectors (nn.ModuleList): See :meth:`connectors`.
            students (Sequence[Tensor]): Maps of the student.
            own (Sequence[Tensor]): Maps of the teacher at the entrance.

        Returns:
            list[Tensor]: Maps in the shapes of the teacher's, which may be overwritten.
        """
        maps = fit_all(connectors, students, own, same_size=True)
        if self.align:
            return [with_statistics_of(x, teacher) for x, teacher in zip(maps, own)]
        return [x.clone() for x in maps]

    def describe(self) -> str:
        """Describes it for the plan."""
        return f"the student's maps go in at {self.taps}" + ('' if self.align else ', as they are')


def with_statistics_of(student: Tensor, teacher: Tensor) -> Tensor:
    """Gives each channel of a map the mean and the standard deviation of the teacher's channel.

    ``(S - mean_S) / (std_S + 1e-6) * std_T + mean_T`` over batch, height and width; deviations are
    unbiased. A single value has no deviation: it becomes the teacher's mean.

    Args:
        student (Tensor): Map of the student, ``(N, C, H, W)``.
        teacher (Tensor): Map of the teacher, ``(N, C, H, W)``.

    Returns:
        Tensor: ``(N, C, H, W)``, in float32 or wider.
    """
    with torch.autocast(student.device.type, enabled=False):
        s, t = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (student, teacher))
        (s_std, s_mean), (t_std, t_mean) = _deviation_and_mean(s), _deviation_and_mean(t)
        return (s - s_mean) / (s_std + EPS) * t_std + t_mean


def _deviation_and_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    several = x[:, 0].numel() > 1
    return torch.std_mean(x, (0, 2, 3), correction=int(several), keepdim=True)
