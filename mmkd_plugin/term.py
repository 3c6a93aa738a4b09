"""Term: one line of the ``distill`` config, from taps to a weighted loss."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_plugin.connectors import ConvConnector
from mmkd_plugin.registry import MODELS
from mmkd_plugin.schedule import Schedule
from mmkd_plugin.taps import Maps, Tap

KEYS = ('tap', 'student_tap', 'teacher_tap', 'teacher', 'loss', 'connector', 'schedule')


class Term(nn.Module):
    """What the student learns from one tap of one teacher.

    Args:
        name (str): Its key in the ``distill`` config; the log shows ``distill.<name>.loss``.
        student_tap (Tap): What to read in the student.
        teacher_tap (Tap): What to read in the teacher.
        loss (nn.Module): Called with the student's and the teacher's map or list of maps; gives a
            scalar that is already weighted.
        teacher (str): Name of the teacher. Defaults to ``'teacher'``.
        connector (dict | list[dict] | None | 'auto'): What converts the student's maps. ``'auto'``
            adds a 1×1 convolution where the loss compares channels and the counts differ; a dict
            is built once per map with ``in_channels`` and ``out_channels`` filled in; None is none.
            Defaults to ``'auto'``.
        schedule (Schedule): When it is on. Defaults to always.
    """

    def __init__(
        self,
        name: str,
        student_tap: Tap,
        teacher_tap: Tap,
        loss: nn.Module,
        teacher: str = 'teacher',
        connector: dict | list | str | None = 'auto',
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.student_tap = student_tap
        self.teacher_tap = teacher_tap
        self.teacher = teacher
        self.loss = loss
        self.schedule = schedule or Schedule()
        self.connectors = nn.ModuleList()
        self._connector = connector

    @classmethod
    def from_config(cls, name: str, config: Any, teachers: Sequence[str]) -> Term:
        """Builds a term from its line in the config.

        Args:
            name (str): Key of the line.
            config (dict): The line.
            teachers (Sequence[str]): Names of the teachers there are.

        Raises:
            ValueError: If a key is unknown or missing, or a value cannot be used.
        """
        here = f'distill.{name}'
        if not str(name).isidentifier() or hasattr(nn.ModuleDict, str(name)):
            raise ValueError(
                f"{here}: '{name}' cannot name a term; take another word of letters, digits and '_'"
            )
        if not isinstance(config, dict):
            raise ValueError(f'{here}: expected dict(tap=..., loss=dict(type=...)), got {config!r}')
        check_keys(here, config, KEYS)
        if 'loss' not in config:
            raise ValueError(
                f"{here} has no `loss`: add loss=dict(type='mmkd_plugin.ChannelWiseLoss'), say"
            )
        student_tap = config.get('student_tap', config.get('tap'))
        teacher_tap = config.get('teacher_tap', config.get('tap'))
        if student_tap is None or teacher_tap is None:
            raise ValueError(
                f"{here} has no tap: add tap='module.path', or `student_tap` and `teacher_tap` "
                'where the models differ'
            )
        teacher = config.get('teacher', teachers[0] if len(teachers) == 1 else None)
        if teacher not in teachers:
            said = 'does not say which teacher' if teacher is None else f"has teacher='{teacher}'"
            raise ValueError(f'{here} {said}; the teachers are: {", ".join(teachers)}')
        try:
            schedule = config.get('schedule') or {}
            if not isinstance(schedule, dict):
                raise ValueError(f'schedule: expected dict(start=..., ramp=...), got {schedule!r}')
            check_keys(f'{here}.schedule', schedule, inspect.signature(Schedule).parameters)
            return cls(
                name,
                Tap.parse(student_tap),
                Tap.parse(teacher_tap),
                _build(config['loss'], f'{here}.loss'),
                teacher,
                config.get('connector', 'auto'),
                Schedule(**schedule),
            )
        except ValueError as error:
            raise ValueError(_prefixed(here, error)) from error

    @property
    def needs_labels(self) -> bool:
        """Whether the loss asks for the segmentation labels ``(N, H, W)``."""
        return bool(getattr(self.loss, 'needs_labels', False))

    def connect(self, student: Maps, teacher: Maps, labels: Tensor | None = None) -> None:
        """Builds the connectors and tries the loss, with what a dry forward has shown.

        Args:
            student (Maps): What the student's tap gave.
            teacher (Maps): What the teacher's tap gave.
            labels (Tensor, optional): Labels of the same images ``(N, H, W)``.

        Raises:
            ValueError: If the loss cannot take these shapes.
        """
        pairs = list(zip(_as_list(student), _as_list(teacher)))
        if len(_as_list(student)) != len(_as_list(teacher)):
            raise ValueError(
                f"distill.{self.name}: '{self.student_tap}' gives {len(_as_list(student))} maps in "
                f"the student and '{self.teacher_tap}' {len(_as_list(teacher))} in the teacher; "
                f"name one of them, such as student_tap='{self.student_tap.path}[0]', or taps with "
                'as many'
            )
        configs = self._connector
        if not isinstance(configs, (list, tuple)):
            configs = [configs] * len(pairs)
        if len(configs) != len(pairs):
            raise ValueError(
                f'distill.{self.name}: {len(configs)} connectors for {len(pairs)} maps; give one '
                'dict for all or one for each'
            )
        self.connectors = nn.ModuleList(
            self._connect_one(config, s, t) for config, (s, t) in zip(configs, pairs)
        )
        training = self.training
        try:
            with (
                torch.no_grad()
            ):  # in eval mode, for connectors with a norm and maps of one position
                self.eval()(student, teacher, labels)
        except (ValueError, RuntimeError) as error:
            shapes = ', '.join(f'{tuple(s.shape)} and {tuple(t.shape)}' for s, t in pairs[:2])
            raise ValueError(
                f'distill.{self.name}: {type(self.loss).__name__} cannot compare '
                f"'{self.student_tap}' of the student with '{self.teacher_tap}' of the teacher "
                f'(in a trial: {shapes}). {error}'
            ) from error
        finally:
            self.train(training)

    def _connect_one(self, config: Any, student: Tensor, teacher: Tensor) -> nn.Module:
        if config is None:
            return nn.Identity()
        channels = dict(in_channels=student.shape[1], out_channels=teacher.shape[1])
        if config != 'auto':
            return _build(config, f'distill.{self.name}.connector', channels)
        differ = student.shape[1] != teacher.shape[1]
        if differ and student.ndim == 4 and getattr(self.loss, 'needs_same_channels', True):
            return ConvConnector(**channels)
        return nn.Identity()

    def forward(self, student: Maps, teacher: Maps, labels: Tensor | None = None) -> Tensor:
        """The weighted loss, before the schedule.

        Args:
            student (Maps): Maps ``(N, C, H, W)`` of the student, with gradient.
            teacher (Maps): Maps of the teacher.
            labels (Tensor, optional): Segmentation labels ``(N, H, W)``, for a loss that asks for
                them.

        Returns:
            Tensor: A scalar.
        """
        students, teachers = _as_list(student), _as_list(teacher)
        if not len(students) == len(teachers) == len(self.connectors):
            raise ValueError(
                f'distill.{self.name}: {len(students)} maps of the student and {len(teachers)} of '
                f'the teacher, where the dry forward at build time gave {len(self.connectors)}'
            )
        students = [
            self._fit(connector, s, t)
            for connector, s, t in zip(self.connectors, students, teachers)
        ]
        if len(students) == 1:
            students, teachers = students[0], teachers[0]
        if self.needs_labels:
            return self.loss(students, teachers, labels=labels)
        return self.loss(students, teachers)

    def _fit(self, connector: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
        size = teacher.shape[2:]
        resize = (
            student.ndim == teacher.ndim == 4
            and student.shape[2:] != size
            and getattr(self.loss, 'needs_same_size', True)
        )
        if resize and student.shape[2:].numel() > size.numel():  # the cheaper order of the two
            return connector(_resize(student, size))
        student = connector(student)
        return _resize(student, size) if resize else student

    def describe_connectors(self) -> str:
        """The connectors in words."""
        texts = []
        for connector in self.connectors:
            if isinstance(connector, ConvConnector):
                kernel = '×'.join(map(str, connector.kernel_size))
                texts.append(f'{kernel} conv {connector.in_channels}→{connector.out_channels}')
            elif not isinstance(connector, nn.Identity):
                texts.append(type(connector).__name__)
        unique = list(dict.fromkeys(texts))
        return ', '.join(
            f'{text} (×{texts.count(text)})' if texts.count(text) > 1 else text for text in unique
        )


def check_keys(here: str, config: dict, known: Any) -> None:
    """Raises a ValueError that names an unknown key and the closest known one."""
    for key in config:
        if key not in known:
            close = get_close_matches(str(key), list(known), n=1, cutoff=0.5)
            hint = f'; did you mean `{close[0]}`?' if close else ''
            raise ValueError(f'{here} has an unknown key `{key}`{hint} (known: {", ".join(known)})')


def _build(config: Any, here: str, defaults: dict | None = None) -> nn.Module:
    if isinstance(config, nn.Module):
        return config
    if not isinstance(config, dict) or 'type' not in config:
        raise ValueError(f"{here}: expected dict(type='mmkd_plugin....'), got {config!r}")
    kind = MODELS.get(config['type']) if isinstance(config['type'], str) else config['type']
    if kind is None:
        names = [f'mmkd_plugin.{name}' for name in MODELS.module_dict]
        close = get_close_matches(config['type'], names, n=3, cutoff=0.4)
        hint = f'; did you mean {" or ".join(close)}?' if close else ''
        raise ValueError(f"{here}: there is no '{config['type']}'{hint}")
    arguments = {key: value for key, value in config.items() if key not in ('type', '_scope_')}
    parameters = inspect.signature(kind).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        check_keys(here, arguments, parameters)
        defaults = {key: value for key, value in (defaults or {}).items() if key in parameters}
    try:
        return kind(**{**(defaults or {}), **arguments})
    except (TypeError, ValueError) as error:
        raise ValueError(f'{here}: {error}') from error


def _prefixed(here: str, error: Exception) -> str:
    return str(error) if str(error).startswith(here) else f'{here}: {error}'


def _as_list(maps: Maps) -> list[Tensor]:
    return [maps] if isinstance(maps, Tensor) else list(maps)


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode='bilinear', align_corners=False)
