"""Term: one line of the ``distill`` config, from taps to a weighted loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from mmkd_plugin.building import build_module, check_compile, check_keys, prefixed
from mmkd_plugin.connectors import ConvConnector
from mmkd_plugin.explanations import Explainer, Scores
from mmkd_plugin.taps import Maps, Tap, Taps, as_list
from mmkd_plugin.terms.compiled import Compiled
from mmkd_plugin.terms.needs import FROM_BATCH, FROM_NORM
from mmkd_plugin.terms.schedule import Schedule
from mmkd_plugin.terms.teacher_connector import load_teacher_connectors

KEYS = (
    'tap',
    'student_tap',
    'teacher_tap',
    'teacher',
    'loss',
    'explainer',
    'connector',
    'teacher_connector',
    'norm',
    'schedule',
    'compile',
)


class _Outside(list):
    """Modules that the tree of a model does not see; a copy of the model shares them."""

    def __deepcopy__(self, memo: dict) -> _Outside:
        return self


class Term(nn.Module):
    """What the student learns from one place of one teacher.

    Args:
        name (str): Its key in the ``distill`` config; the log shows ``distill.<name>.loss``.
        student_tap (Taps): What to read in the student.
        teacher_tap (Taps): What to read in the teacher.
        loss (nn.Module): Called with the student's and the teacher's map or list of maps; gives a
            scalar that is already weighted.
        teacher (str): Name of the teacher. Defaults to ``'teacher'``.
        connector (dict | list[dict] | None | 'auto'): What converts the student's maps. ``'auto'``
            adds a 1×1 convolution where the loss compares channels and the counts differ; a dict
            is built once per map with ``in_channels`` and ``out_channels`` filled in; None is none.
            Defaults to ``'auto'``.
        teacher_connector (dict, optional): What converts the teacher's maps: a module that was
            trained before and is frozen, with the file of its weights as ``checkpoint``. Defaults
            to None.
        norm (str | list[str], optional): Names of the teacher's batch norms that feed the maps,
            for a loss that needs them. Defaults to None, which finds them.
        schedule (Schedule): When it is on. Defaults to always.
        explainer (Explainer, optional): What explains class scores by the maps; the loss compares
            these explanations instead of the maps. Defaults to None.
        compile (bool): Whether the loss runs through torch.compile in training. Defaults to False.
    """

    def __init__(
        self,
        name: str,
        student_tap: Taps,
        teacher_tap: Taps,
        loss: nn.Module,
        teacher: str = 'teacher',
        connector: dict | list | str | None = 'auto',
        teacher_connector: dict | None = None,
        norm: str | Sequence[str] | None = None,
        schedule: Schedule | None = None,
        explainer: Explainer | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.student_tap = student_tap
        self.teacher_tap = teacher_tap
        self.teacher = teacher
        self.loss = loss
        self.schedule = schedule or Schedule()
        self.connectors = nn.ModuleList()
        self.teacher_connectors = _Outside()
        self.norms: list[str] = []
        self._connector = connector
        self._teacher_connector = teacher_connector
        self.norm_names = [norm] if isinstance(norm, str) else norm
        self.needs = tuple(getattr(loss, 'needs', ()))
        self.explainer = explainer
        self.compiled = Compiled(f'distill.{name}') if compile else None
        self.score_kind: Scores | None = None
        self._check_explainer()
        known = [*FROM_BATCH, *FROM_NORM]
        for need in self.needs:
            if need not in known:
                raise ValueError(
                    f"distill.{name}: {type(loss).__name__} needs '{need}'; what there is: "
                    f'{", ".join(known)}'
                )

    def _check_explainer(self) -> None:
        kind = type(self.loss).__name__
        if self.explainer is None:
            if getattr(self.loss, 'compares', 'maps') == 'explanations':
                raise ValueError(
                    f'distill.{self.name}: {kind} compares explanations; add '
                    "explainer=dict(type='mmkd_plugin.GradCAM', scores='decode_head.conv_seg')"
                )
            return
        if not isinstance(self.explainer, Explainer):
            raise ValueError(
                f'distill.{self.name}.explainer: {type(self.explainer).__name__} is no explainer; '
                'take mmkd_plugin.GradCAM, say'
            )
        if self.compares_gradients or self.needs:
            raise ValueError(
                f'distill.{self.name}: {kind} cannot compare explanations; take '
                'mmkd_plugin.ExplanationLoss, or leave `explainer` out'
            )
        if self._connector not in ('auto', None) or self._teacher_connector is not None:
            raise ValueError(
                f'distill.{self.name}: explanations have the size of the image in both models; '
                'leave the connector out'
            )

    def reads(self, side: str, frozen: bool = False) -> tuple[Tap, ...]:
        """All taps that it reads in a model.

        Args:
            side (str): ``'student'`` or ``'teacher'``.
            frozen (bool): Whether the explanations of the model are stored, so that the maps which
                explain are not needed. Defaults to False.
        """
        taps = self.student_tap if side == 'student' else self.teacher_tap
        if self.explainer is None:
            return tuple(taps)
        return tuple(self.scores(side)) if frozen else (*taps, *self.scores(side))

    def scores(self, side: str) -> Taps:
        """The tap of the class scores that its explainer explains, in a model."""
        return self.explainer.scores(side)

    @classmethod
    def from_config(
        cls, name: str, config: Any, teachers: Sequence[str], compile: bool = False
    ) -> Term:
        """Builds a term from its line in the config.

        Args:
            name (str): Key of the line.
            config (dict): The line.
            teachers (Sequence[str]): Names of the teachers there are.
            compile (bool): Whether its loss is compiled where the line does not say. Defaults to
                False.

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
        compile = check_compile(config.get('compile', compile), f'{here}.')
        explainer = config.get('explainer')
        if explainer is not None:
            explainer = build_module(explainer, f'{here}.explainer')
        try:
            return cls(
                name,
                Taps.parse(student_tap),
                Taps.parse(teacher_tap),
                build_module(config['loss'], f'{here}.loss'),
                teacher,
                config.get('connector', 'auto'),
                config.get('teacher_connector'),
                config.get('norm'),
                Schedule.from_config(f'{here}.schedule', config.get('schedule')),
                explainer,
                compile,
            )
        except ValueError as error:
            raise ValueError(prefixed(here, error)) from error

    @property
    def compares_gradients(self) -> bool:
        """Whether the loss compares gradients of the task losses instead of maps."""
        return getattr(self.loss, 'compares', 'maps') == 'gradients'

    @property
    def from_batch(self) -> tuple[str, ...]:
        """Names of what the loss needs from the batch."""
        return tuple(need for need in self.needs if need in FROM_BATCH)

    def use_norms(self, norms: Sequence[tuple[str, nn.Module | None]], live: bool = False) -> None:
        """Takes what the loss needs from the batch norms that feed the teacher's maps.

        Args:
            norms (Sequence[tuple]): Name and module for each map, in their order; the module is
                None where none was found.
            live (bool): Whether the norms are trained, so that they are read in every iteration.
                Defaults to False.

        Raises:
            ValueError: If there is none, or it has no weight and bias.
        """
        for position, (name, norm) in enumerate(norms):
            weight, bias = getattr(norm, 'weight', None), getattr(norm, 'bias', None)
            if weight is None or bias is None:
                found = f"'{name}' is a {type(norm).__name__} without them" if norm else 'none was'
                found += '' if norm else ' found'
                raise ValueError(
                    f'distill.{self.name}: {type(self.loss).__name__} needs the weight and the '
                    f"bias of the batch norm that feeds '{self.teacher_tap}' of the teacher, and "
                    f"{found}. Name it: norm='backbone.layer4.2.bn3'"
                )
            for need in self.needs if not live else ():
                if need in FROM_NORM:
                    value = FROM_NORM[need](weight.detach(), bias.detach())
                    self.register_buffer(f'_{need}_{position}', value, persistent=False)
        self.norms = [name for name, _ in norms]
        self._live = _Outside(norm for _, norm in norms) if live else _Outside()

    def _constants(self) -> dict[str, Any]:
        """What :meth:`use_norms` took, as keyword arguments of the loss."""
        constants = {}
        for need in self.needs:
            if need in FROM_NORM:
                values = [FROM_NORM[need](n.weight.detach(), n.bias.detach()) for n in self._live]
                values = values or [getattr(self, f'_{need}_{n}') for n in range(len(self.norms))]
                constants[need] = values[0] if len(values) == 1 else values
        return constants

    def connect(self, student: Maps, teacher: Maps, given: dict[str, Any] | None = None) -> None:
        """Builds the connectors and tries the loss, with what a dry forward has shown.

        Args:
            student (Maps): What the student's taps gave.
            teacher (Maps): What the teacher's taps gave.
            given (dict, optional): What the loss needs from a batch, of the same images.

        Raises:
            ValueError: If the loss cannot take these shapes.
            FileNotFoundError: If the weights of a ``teacher_connector`` do not exist.
        """
        students, teachers = as_list(student), as_list(teacher)
        if len(students) != len(teachers):
            raise ValueError(
                f"distill.{self.name}: '{self.student_tap}' gives {len(students)} maps in the "
                f"student and '{self.teacher_tap}' {len(teachers)} in the teacher; name one of "
                f"them, such as student_tap='{self.student_tap.taps[0].path}[0]', or taps with as "
                'many'
            )
        if self.norms and len(self.norms) != len(teachers):
            raise ValueError(
                f'distill.{self.name}: norm has {len(self.norms)} names for {len(teachers)} maps; '
                'give one for each'
            )
        if self.compares_gradients:
            for s, t in zip(students, teachers):
                if s.shape != t.shape:
                    raise ValueError(
                        f"distill.{self.name}: gradients at '{self.student_tap}' of the student "
                        f"and '{self.teacher_tap}' of the teacher have different shapes (in a "
                        f'trial: {tuple(s.shape)} and {tuple(t.shape)}), and no connector can '
                        "change that; tap what has the same in both, such as 'backbone@input' or "
                        'the class scores'
                    )
        if self._teacher_connector is not None:
            self.teacher_connectors[:] = self._build_teacher_connectors(teachers)
        with torch.no_grad():
            converted = self._convert_teacher(teachers)
        pairs = list(zip(students, converted))
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
                self.eval()(student, teacher, given)
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
            return build_module(config, f'distill.{self.name}.connector', channels)
        differ = student.shape[1] != teacher.shape[1]
        if differ and student.ndim == 4 and getattr(self.loss, 'needs_same_channels', True):
            return ConvConnector(**channels)
        return nn.Identity()

    def _build_teacher_connectors(self, maps: Sequence[Tensor]) -> list[nn.Module]:
        here = f'distill.{self.name}.teacher_connector'
        config = self._teacher_connector
        if not isinstance(config, dict) or 'type' not in config:
            raise ValueError(f"{here}: expected dict(type='mmkd_plugin.Paraphraser'), got {config}")
        if 'checkpoint' not in config:
            raise ValueError(
                f'{here} has no `checkpoint`: it is trained before the student. Train it with '
                'tools/train.py CONFIG --paraphraser, which says where its weights are'
            )
        config = {key: value for key, value in config.items() if key != 'checkpoint'}
        modules = [build_module(config, here, dict(in_channels=x.shape[1])) for x in maps]
        path = self._teacher_connector['checkpoint']
        if path is None:
            print_log(f'{here} has no checkpoint: its weights are random.', 'current', 30)
        else:
            load_teacher_connectors(modules, path, self.name)
        for module in modules:
            module.requires_grad_(False).eval()
            if hasattr(module, 'drop_decoder'):
                module.drop_decoder()
        return modules

    def _convert_teacher(self, maps: list[Tensor]) -> list[Tensor]:
        if not self.teacher_connectors:
            return maps
        with torch.no_grad():
            return [connect(x) for connect, x in zip(self.teacher_connectors, maps)]

    def _apply(self, fn: Any, recurse: bool = True) -> Term:
        for module in self.teacher_connectors:
            module._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, student: Maps, teacher: Maps, given: dict[str, Any] | None = None) -> Tensor:
        """The weighted loss, before the schedule.

        Args:
            student (Maps): Maps ``(N, C, H, W)`` of the student, with gradient.
            teacher (Maps): Maps of the teacher.
            given (dict, optional): What the loss needs from the batch, by name. Other entries are
                left alone.

        Returns:
            Tensor: A scalar.
        """
        students, teachers = as_list(student), as_list(teacher)
        if not len(students) == len(teachers) == len(self.connectors):
            raise ValueError(
                f'distill.{self.name}: {len(students)} maps of the student and {len(teachers)} of '
                f'the teacher, where the dry forward at build time gave {len(self.connectors)}'
            )
        teachers = self._convert_teacher(teachers)
        students = [
            self._fit(connector, s, t)
            for connector, s, t in zip(self.connectors, students, teachers)
        ]
        if len(students) == 1:
            students, teachers = students[0], teachers[0]
        batch = {need: (given or {}).get(need) for need in self.from_batch}
        given = {**batch, **self._constants()}
        if self.compiled is not None and self.training:
            return self.compiled(self.loss, students, teachers, **given)
        return self.loss(students, teachers, **given)

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
                text = f'{kernel} conv {connector.in_channels}→{connector.out_channels}'
                texts.append(text + (' + BN' if connector.norm is not None else ''))
            elif not isinstance(connector, nn.Identity):
                texts.append(type(connector).__name__)
        texts += [f'{type(module).__name__} (teacher)' for module in self.teacher_connectors]
        unique = list(dict.fromkeys(texts))
        return ', '.join(
            f'{text} (×{texts.count(text)})' if texts.count(text) > 1 else text for text in unique
        )


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode='bilinear', align_corners=False)
