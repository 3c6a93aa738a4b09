"""Distiller: a student that trains with teachers and otherwise is the student."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from mmengine.device import get_device
from mmengine.dist import broadcast, get_world_size
from mmengine.logging import MessageHub, print_log
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmkd_plugin.cached_teacher import CachedTeacher, classes_around
from mmkd_plugin.checkpoint import METADATA_KEY, check_student_weights
from mmkd_plugin.dry_run import (
    DryRun,
    dry_run_student,
    example_batch,
    random_state_kept,
    trial_copy,
)
from mmkd_plugin.explanations import Chosen, Explanation, Scores, explain, scores_of
from mmkd_plugin.keys import check_keys
from mmkd_plugin.losses.numerics.checks import finite_number
from mmkd_plugin.needs import FROM_BATCH, FROM_NORM
from mmkd_plugin.plan import plan
from mmkd_plugin.registry import MODELS
from mmkd_plugin.schedule import Schedule
from mmkd_plugin.self_teacher import SelfTeacher
from mmkd_plugin.taps import Maps, Tap, TapReader, Taps, as_list
from mmkd_plugin.task_gradient import once_only, task_gradients, twice_differentiable
from mmkd_plugin.teacher import Teacher
from mmkd_plugin.teacher_configs import build_teacher, is_self_teacher, teacher_configs
from mmkd_plugin.term import Term, check_compile

STATE_VERSION = 1
#: Parts whose state lies beside that of the student in a checkpoint.
BESIDE = ('distill', 'self_teachers')


class Seen(NamedTuple):
    """What one forward of a model showed."""

    maps: dict[Tap, Maps]
    gradients: dict[Tap, Maps]
    explanations: dict[Term, Explanation]

    def by(self, term: Term, taps: Taps) -> Maps:
        """What a term compares."""
        if term.explainer is not None:
            return self.explanations[term].pairs()
        return taps.of(self.gradients if term.compares_gradients else self.maps)


@MODELS.register_module()
class Distiller(BaseModel):
    """Trains a student with terms that compare it to frozen teachers.

    ``mode='loss'`` gives the student's own losses and one ``distill.<term>.loss`` for each term
    that is on. Everything else is the student's: predictions, the state dict, the names of the
    parameters, and any attribute that the Distiller does not have.

    Args:
        student (dict | nn.Module): A model that trains by itself: any mmengine ``BaseModel``.
        teacher (dict | list[dict]): ``config`` (path, ``pkg::`` path or model dict),
            ``checkpoint``, ``strict``, ``name`` and ``inference`` of a :class:`Teacher`; or
            ``type='mmkd_plugin.SelfTeacher'`` and the arguments of a :class:`SelfTeacher`; a list
            for several, which then all need a name.
        distill (dict[str, dict]): The terms: ``tap`` (or ``student_tap`` and ``teacher_tap``),
            ``loss``, and optionally ``teacher``, ``explainer``, ``connector``,
            ``teacher_connector``, ``norm``, ``schedule`` and ``compile``. See :class:`Term` and
            :class:`Schedule`.
        task (dict, optional): ``loss_weight`` and ``schedule`` of the student's own losses. While
            it is off the student runs no further than its last tap. Defaults to None, which is
            weight 1 and always on.
        data_preprocessor (dict, optional): The student's, where its own config has none; filled in
            by the runner. Defaults to None.
        compile (bool): Whether the losses of the terms run through torch.compile in training; a
            term's own ``compile`` overrides it. Defaults to False.

    Raises:
        ValueError: If a term, a tap or a teacher cannot be used; before training starts.
        FloatingPointError: If the loss of a term is not finite.

    Examples:
        >>> model = dict(
        ...     type='mmkd_plugin.Distiller',
        ...     student=dict(type='EncoderDecoder'),  # and so on, as in a config of mmseg
        ...     teacher=dict(config='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        ...                  checkpoint='pspnet_r101.pth'),
        ...     distill=dict(
        ...         cwd=dict(
        ...             tap='decode_head.conv_seg',
        ...             loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=4, loss_weight=3))))
    """

    def __init__(
        self,
        student: dict | nn.Module,
        teacher: dict | Sequence[dict],
        distill: dict,
        task: dict | None = None,
        data_preprocessor: dict | None = None,
        compile: bool = False,
    ) -> None:
        config = student
        if isinstance(student, dict):
            student = dict(student)
            if data_preprocessor is not None:
                student.setdefault('data_preprocessor', data_preprocessor)
            student = MODELS.build(student)
        with random_state_kept():  # the student starts as it would alone
            super().__init__(data_preprocessor=student.data_preprocessor)
            self.student = student
            configs = teacher_configs(teacher)
            own = {name for name, one in configs.items() if is_self_teacher(one)}
            if own and not isinstance(config, dict):
                raise ValueError("a self-teacher is built from the student's config; give a dict")
            self.distill = nn.ModuleDict(_terms(distill, list(configs), check_compile(compile)))
            used = {term.teacher for term in self.distill.values()}
            for name in set(configs) - used - own:
                print_log(
                    f"Teacher '{name}' is not built: no term of `distill` has teacher='{name}'.",
                    logger='current',
                    level=30,
                )
            self.teachers = {
                n: build_teacher(c) for n, c in configs.items() if n in used and n not in own
            }
            self.self_teachers = nn.ModuleDict(
                {
                    n: SelfTeacher(**{k: v for k, v in configs[n].items() if k != 'type'})
                    for n in configs
                    if n in own
                }
            )
            self.task_weight, self.task_schedule = _task(task)
            self._run = self._connect(config)
        self._checked_schedules = self._checked_gradients = False
        self._register_state_dict_hook(_student_state)

    def _connect(self, config: dict) -> DryRun:
        """Tries student and teachers once, builds the connectors and logs the plan."""
        device = torch.device(get_device())
        terms = list(self.distill.values())
        taps = _taps(terms, 'student') + [t for own in self.self_teachers.values() for t in own.tap]
        student = dry_run_student(self.student, taps, device)
        taught: dict[str, DryRun] = {}
        for name, teacher in self.teachers.items():
            mine = [term for term in terms if term.teacher == name]
            taught[name] = teacher.prepare(
                self.student.data_preprocessor,
                _taps(mine, 'teacher', False, isinstance(teacher, CachedTeacher)),
                device,
                student.size,
                _taps(mine, 'teacher', True),
            )
            if isinstance(teacher, CachedTeacher):
                teacher.prepare_explanations(mine, taught[name])
        for name, own in self.self_teachers.items():
            mine = [term for term in terms if term.teacher == name]
            samples = student.samples and [sample.cpu() for sample in student.samples]
            sync = any(isinstance(m, nn.SyncBatchNorm) for m in self.student.modules())
            maps, taps = own.tap.of(student.values), _taps(mine, 'teacher')
            taught[name] = own.prepare(config, maps, samples, taps, sync)
            taught[name].size = student.size
        given = {need: source.example(student.size) for need, source in FROM_BATCH.items()}
        for term in terms:
            own = term.teacher in self.self_teachers
            teacher = (self.self_teachers if own else self.teachers)[term.teacher]
            run = taught[term.teacher]
            s, t = term.student_tap.of(student.values), term.teacher_tap.of(run.values)
            if own and (term.compares_gradients or term.explainer is not None):
                what = 'gradients of task losses' if term.compares_gradients else 'explanations'
                raise ValueError(
                    f'distill.{term.name}: {type(term.loss).__name__} compares {what}, for which a '
                    'self-teacher is no teacher'
                )
            if term.explainer is not None:
                s, t = self._try_explaining(term, student.size, run.size, device)
            else:
                _check_classes(term, self.student, s, teacher, t)
            if any(need in FROM_NORM for need in term.needs):
                term.use_norms(teacher.norms(term.teacher_tap, term.norm_names), live=own)
            term.connect(s, t, given)
        text = plan(self.distill, self.teachers, student, taught)
        for own in self.self_teachers.values():
            text += f'\n{own.work(student.size)}'
        if self.task_weight != 1 or self.task_schedule != Schedule():
            text += f'\ntask loss: weight {self.task_weight:g}, on {self.task_schedule}'
        print_log(f'\n{text}', logger='current')
        for run in (student, *taught.values()):
            run.values.clear()
            run.samples = None
        return student

    def _try_explaining(
        self, term: Term, student_size: int, teacher_size: int, device: torch.device
    ) -> tuple[Maps, Maps]:
        """Explains a made-up image, so that what cannot be explained is refused before training."""
        teacher, copy = self.teachers[term.teacher], trial_copy(self.student, device)
        ours, student = _trial(copy, term, 'student', student_size, device)
        if isinstance(teacher, CachedTeacher):
            theirs, maps = teacher.example_of(term)
        else:
            theirs, maps = _trial(teacher.model, term, 'teacher', teacher_size, device)
        if ours != theirs:
            raise ValueError(
                f'distill.{term.name}: the student has {ours.classes} classes and the teacher '
                f'{theirs.classes}; explained are the same classes in both'
                if ours.classes != theirs.classes
                else f'distill.{term.name}: the classes of one model are independent, those of the '
                'other are not'
            )
        term.score_kind = ours
        return student, maps

    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'
    ) -> Any:
        """Runs the student, and in ``mode='loss'`` the teachers and the terms that are on.

        Args:
            inputs (Tensor): Images ``(N, C, H, W)`` from the data preprocessor.
            data_samples (list, optional): Their data samples. Defaults to None.
            mode (str): ``'loss'``, ``'predict'`` or ``'tensor'``. Defaults to ``'tensor'``.

        Returns:
            dict | list | Tensor: What the student gives; in ``mode='loss'`` with the terms added.
        """
        if mode != 'loss':
            return self.student(inputs, data_samples, mode=mode)
        factors, task = self._factors()
        active = [term for name, term in self.distill.items() if factors[name] > 0]
        if not active and task == 0 and not self.self_teachers:
            raise ValueError(
                'there is nothing to learn now: the task loss is off, and so are all terms of '
                '`distill`; let their schedules meet'
            )
        taught = {
            name: _taught(teacher, inputs, data_samples, terms)
            for name, teacher in self.teachers.items()
            if (terms := [term for term in active if term.teacher == name])
        }
        chosen = {t: e.chosen for seen in taught.values() for t, e in seen.explanations.items()}
        losses, seen = self._run_student(inputs, data_samples, active, task, chosen)
        for name, own in self.self_teachers.items():
            taps = _taps([term for term in active if term.teacher == name], 'teacher')
            learnt, maps = own(own.tap.of(seen.maps), data_samples, taps)
            losses |= {key: _scaled(key, x, own.loss_weight) for key, x in learnt.items()}
            taught[name] = Seen(maps, {}, {})
        given = {need: _from_batch(need, data_samples, active) for need in FROM_BATCH}
        values, compared = {}, {}
        for term in active:
            student = seen.by(term, term.student_tap)
            teacher = taught[term.teacher].by(term, term.teacher_tap)
            if torch.is_grad_enabled():
                _check_gradient(term, student)
            values[term], compared[term] = term(student, teacher, given), (student, teacher)
            losses[f'distill.{term.name}.loss'] = values[term] * factors[term.name]
        if values and not torch.isfinite(torch.stack([*values.values()]).detach()).all():
            term = next(term for term, loss in values.items() if not torch.isfinite(loss))
            raise FloatingPointError(_not_finite(term, values[term], *compared[term]))
        for name, term in self.distill.items():
            if term.schedule.is_over(self._position(term.schedule)):
                # mmengine's log would go on to show the last value
                losses[f'distill.{name}.loss'] = inputs.new_zeros(())
        if get_world_size() > 1:  # DDP waits for the gradient of every parameter
            idle = [
                p for term in self.distill.values() if term not in active for p in term.parameters()
            ]
            if task == 0:
                idle += [p for p in self.student.parameters() if p.requires_grad]
            if idle:
                losses['distill.idle_loss'] = sum(p.sum() for p in idle) * 0
        return losses

    def _run_student(
        self,
        inputs: Tensor,
        data_samples: list | None,
        active: Sequence[Term],
        task: float,
        chosen: Mapping[Term, Chosen],
    ) -> tuple[dict, Seen]:
        """The student's own losses, times ``task``, and what the terms compare."""
        taps = _taps(active, 'student', gradients=False)
        taps += [tap for own in self.self_teachers.values() for tap in own.tap if tap not in taps]
        gradient_taps = _taps(active, 'student', gradients=True)
        explaining = list(chosen)
        reader = TapReader(
            self.student,
            [*taps, *gradient_taps],
            self._run.in_place,
            self._run.calls if task == 0 and not gradient_taps else None,
            self._run.places,
            on_path=[*gradient_taps, *(tap for term in explaining for tap in term.student_tap)],
        )
        losses, gradients, learning = {}, {}, torch.is_grad_enabled()
        with ExitStack() as stack:
            if gradient_taps or explaining:
                stack.enter_context(torch.enable_grad())
            if gradient_taps:
                stack.enter_context(twice_differentiable(self.student))
            for term in explaining:
                stack.enter_context(term.explainer.context(self.student))
            with reader:
                losses = dict(self.student(inputs, data_samples, mode='loss'))
            maps = {tap: reader.read(tap) for tap in [*taps, *gradient_taps]}
            if gradient_taps:
                compared = {tap: maps[tap] for tap in gradient_taps}
                loss = self.student.parse_losses(losses)[0]
                self._check_once(loss, compared)
                gradients = task_gradients(loss, compared, create_graph=learning)
            explanations = {}
            for term in explaining:
                self._check_once(
                    term.scores('student').of(maps), {tap: maps[tap] for tap in term.student_tap}
                )
                explanations[term] = _explained(
                    term, 'student', maps, chosen[term], inputs.shape[2:], learning
                )
            self._checked_gradients = bool(gradient_taps or explaining) or self._checked_gradients
        if task != 1:
            losses = {} if task == 0 else {k: _scaled(k, v, task) for k, v in losses.items()}
        return losses, Seen({tap: maps[tap] for tap in taps}, gradients, explanations)

    def _check_once(self, outputs: Maps, maps: Mapping[Tap, Maps]) -> None:
        """Refuses, in the first iteration, what cannot be differentiated twice."""
        if self._checked_gradients:
            return
        for output in as_list(outputs):
            _check_second_derivative(output, maps)

    def _factors(self) -> tuple[dict[str, float], float]:
        """The factors of the terms and of the task now, by the counters of mmengine's runner."""
        info = MessageHub.get_current_instance().runtime_info
        schedules = {f'distill.{name}': term.schedule for name, term in self.distill.items()}
        if not self._checked_schedules:
            for name, schedule in (schedules | {'task': self.task_schedule}).items():
                unit = 'epochs' if schedule.by_epoch else 'iters'
                length = info.get(f'max_{unit}')
                if length is not None and schedule.never_on(length):
                    raise ValueError(
                        f'{name} never comes on: its schedule is "{schedule}" and the '
                        f'run has {length} {unit}'
                        + ('; a run by iterations has one epoch' if unit == 'epochs' else '')
                    )
            self._checked_schedules = True

        factors = {
            name: term.schedule.factor(self._position(term.schedule))
            for name, term in self.distill.items()
        }
        task = self.task_schedule.factor(self._position(self.task_schedule))
        return factors, self.task_weight * task

    @staticmethod
    def _position(schedule: Schedule) -> int:
        info = MessageHub.get_current_instance().runtime_info
        return info.get('epoch' if schedule.by_epoch else 'iter', 0)

    def init_weights(self) -> None:
        """Initialises the student as it would be alone; the teachers keep what they loaded."""
        self.student.init_weights()
        with random_state_kept():
            for own in self.self_teachers.values():
                own.init_weights()
        # The runner does this after DDP's own, and for what the state dict holds: the student.
        for value in self.self_teachers.state_dict().values():
            broadcast(value)

    def named_parameters(
        self, prefix: str = '', recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """The student's parameters under its own names, then those of the terms.

        Layer-wise learning rates of OpenMMLab go by names such as ``backbone.stages.0``.
        """
        start = f'{prefix}.student.' if prefix else 'student.'
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            if name.startswith(start):
                name = f'{prefix}.{name[len(start) :]}' if prefix else name[len(start) :]
            yield name, parameter

    def __getattr__(self, name: str) -> Any:
        """Falls back on the student, for hooks that look for ``model.bbox_head`` and the like."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            modules = self.__dict__.get('_modules', {})
            if 'student' not in modules:
                raise
            return getattr(modules['student'], name)

    def _apply(self, fn: Any, recurse: bool = True) -> Distiller:
        for teacher in self.teachers.values():
            teacher.apply_to_tensors(fn, recurse)
        return super()._apply(fn, recurse)

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, local_metadata: dict, *args: Any
    ) -> None:
        """Takes a student's state dict, and the state of the terms that lies beside it."""
        own = self.student.state_dict()
        found = {key[len(prefix) :]: key for key in state_dict if key.startswith(prefix)}
        saved = local_metadata.get(METADATA_KEY)
        check_student_weights(
            {key: value.shape for key, value in own.items()},
            {key: state_dict[full] for key, full in found.items()},
            distilled=saved is not None,
        )
        for key, full in found.items():
            state_dict[f'{prefix}student.{key}'] = state_dict.pop(full)
        metadata = getattr(state_dict, '_metadata', None)
        if metadata is not None:  # so that version conversions of the student's modules work
            for key in [key for key in metadata if not key.startswith('student')]:
                metadata.setdefault(f'student.{key}'.rstrip('.'), metadata[key])
        for key in self.data_preprocessor.state_dict():
            value = state_dict.get(f'{prefix}student.data_preprocessor.{key}')
            if value is not None:
                state_dict[f'{prefix}data_preprocessor.{key}'] = value
        terms = {} if saved is None else saved['state']
        missing = []
        beside = {
            f'{part}.{key}': value
            for part in BESIDE
            for key, value in getattr(self, part).state_dict().items()
        }
        for key, value in beside.items():
            if key in terms and terms[key].shape == value.shape:
                value = terms[key]
            elif saved is not None:
                missing.append(key)
            state_dict[prefix + key] = value
        if missing:
            print_log(
                f'The checkpoint has no fitting state for {", ".join(missing)}: '
                'this part of the distillation starts afresh.',
                logger='current',
                level=30,
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def _student_state(module: nn.Module, destination: dict, prefix: str, local_metadata: dict) -> None:
    """State-dict hook: the student's keys alone, the state of the terms in the metadata."""
    start, terms = f'{prefix}student.', {}
    for key in [key for key in destination if key.startswith(prefix)]:
        value = destination.pop(key)
        if key.startswith(start):
            destination[prefix + key[len(start) :]] = value
        elif key.startswith(tuple(f'{prefix}{part}.' for part in BESIDE)):
            terms[key[len(prefix) :]] = value.detach().cpu()
    metadata = getattr(destination, '_metadata', {})
    for key in [key for key in metadata if f'{key}.'.startswith(start)]:
        metadata[(prefix + key[len(start) :]).rstrip('.')] = metadata[key]
    local_metadata[METADATA_KEY] = dict(version=STATE_VERSION, state=terms)
    metadata[prefix[:-1]] = local_metadata


def _terms(distill: Any, teachers: Sequence[str], compile: bool) -> dict[str, Term]:
    if not isinstance(distill, dict) or not distill:
        raise ValueError(
            'distill has no term: add one, such as '
            "distill=dict(cwd=dict(tap='neck', loss=dict(type='mmkd_plugin.ChannelWiseLoss')))"
        )
    if 'loss' in distill and ('tap' in distill or 'student_tap' in distill):
        raise ValueError('distill is a dict of named terms: write distill=dict(cwd=dict(tap=...))')
    return {n: Term.from_config(n, config, teachers, compile) for n, config in distill.items()}


def _check_classes(
    term: Term, student: nn.Module, student_maps: Maps, teacher: Any, teacher_maps: Maps
) -> None:
    """Class scores of different numbers of classes are no matter of a 1×1 convolution."""
    if term._connector != 'auto' or not getattr(term.loss, 'needs_same_channels', True):
        return
    ours, tap = classes_around(student, term.student_tap.taps[0]), term.teacher_tap.taps[0]
    cached = isinstance(teacher, CachedTeacher)
    theirs = teacher.classes(tap) if cached else classes_around(teacher.model, tap)
    if not ours or not theirs or ours == theirs:
        return
    s, t = as_list(student_maps)[0], as_list(teacher_maps)[0]
    each, rest = divmod(s.shape[1], ours)
    if not rest and t.shape[1] == each * theirs:
        raise ValueError(
            f"distill.{term.name}: '{term.student_tap}' gives scores of {ours} classes in the "
            f'student and {theirs} in the teacher. Class scores can be compared only for the same '
            "classes: take a teacher of the student's dataset, or tap features below the "
            'classifier'
        )


def _task(config: Any) -> tuple[float, Schedule]:
    """Weight and schedule of the student's own losses."""
    config = {} if config is None else config
    if not isinstance(config, dict):
        raise ValueError(f'task: expected dict(loss_weight=..., schedule=...), got {config!r}')
    check_keys('task', config, ('loss_weight', 'schedule'))
    try:
        weight = finite_number('loss_weight', config.get('loss_weight', 1.0))
        if weight < 0:
            raise ValueError(f'loss_weight cannot be negative, got {weight}')
        return weight, Schedule.from_config('schedule', config.get('schedule'))
    except (TypeError, ValueError) as error:
        raise ValueError(f'task: {error}') from error


def _trial(
    model: nn.Module, term: Term, side: str, size: int, device: torch.device
) -> tuple[Scores, list[Tensor]]:
    """The kind of a model's class scores, and a corner of its explanations of a made-up image."""
    here, tap = f'distill.{term.name}: the {side}', getattr(term, f'{side}_tap')
    kind = scores_of(model, term.scores(side), here)
    home = next(model.parameters()).device
    inputs, samples = example_batch(model.to(device), device, size)
    try:
        explanation = explain(model, inputs, samples, term.explainer, tap, side=side)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{here}'s scores at '{term.scores(side)}' cannot be explained by '{tap}'. {error}"
        ) from error
    finally:
        model.to(home)
    return kind, [x[:, 0, :, :8, :8] for x in explanation.maps]


def _taps(
    terms: Sequence[Term], side: str, gradients: bool | None = None, frozen: bool = False
) -> list[Tap]:
    """The taps of terms on one side, each once; all, or those of one kind of loss."""
    return list(
        dict.fromkeys(
            tap
            for term in terms
            if gradients is None or term.compares_gradients is gradients
            for tap in term.reads(side, frozen)
        )
    )


def _taught(
    teacher: Teacher, inputs: Tensor, data_samples: list | None, terms: Sequence[Term]
) -> Seen:
    explaining = [term for term in terms if term.explainer is not None]
    gradient_taps = _taps(terms, 'teacher', gradients=True)
    maps, gradients = {}, {}
    if gradient_taps:  # the backward pass of the task loss uses its graph up
        taps = _taps([term for term in terms if term not in explaining], 'teacher', False)
        maps, gradients = teacher.with_gradients(inputs, data_samples, taps, gradient_taps)
        terms = explaining
    step = MessageHub.get_current_instance().runtime_info.get('iter', 0)
    frozen, explanations = isinstance(teacher, CachedTeacher), {}
    with ExitStack() as stack:
        if terms:
            taps, on_path = _taps(terms, 'teacher', frozen=frozen), ()
            if not frozen:
                on_path = [tap for term in explaining for tap in term.teacher_tap]
                for term in explaining:
                    stack.enter_context(term.explainer.context(teacher.model))
            maps |= teacher(inputs, data_samples, taps, on_path)
        for term in explaining:
            scores = term.scores('teacher').of(maps)
            chosen = term.explainer.choose(scores, term.score_kind, step)
            explanations[term] = (
                teacher.explanation(inputs, data_samples, term, chosen)
                if frozen
                else _explained(term, 'teacher', maps, chosen, inputs.shape[2:], False)
            )
    if explaining:  # their graph is not needed any more
        maps = {
            tap: x.detach() if isinstance(x, Tensor) else [y.detach() for y in x]
            for tap, x in maps.items()
        }
    return Seen(maps, gradients, explanations)


def _explained(
    term: Term,
    side: str,
    maps: Mapping[Tap, Maps],
    chosen: Chosen,
    size: Sequence[int],
    create_graph: bool,
) -> Explanation:
    """The explanations of a model that ran."""
    taps = term.student_tap if side == 'student' else term.teacher_tap
    features, scores = taps.of(maps), term.scores(side).of(maps)
    return term.explainer(features, scores, chosen, term.score_kind, size, create_graph)


def _from_batch(need: str, data_samples: list | None, active: Sequence[Term]) -> Any:
    """What the losses that are on need of a batch, None if none of them needs it."""
    asking = next((term for term in active if need in term.needs), None)
    if asking is None:
        return None
    value = FROM_BATCH[need].read(data_samples) if data_samples else None
    if value is None:
        raise ValueError(
            f'distill.{asking.name}: {type(asking.loss).__name__} needs {FROM_BATCH[need].words} '
            f'(`{need}`); this batch has none'
        )
    return value


def _scaled(key: str, value: Any, factor: float) -> Any:
    """An entry of the losses of a model; what is no loss (an accuracy, say) stays."""
    if 'loss' not in key:
        return value
    return value * factor if isinstance(value, Tensor) else [item * factor for item in value]


def _check_second_derivative(loss: Tensor, maps: Mapping[Tap, Maps]) -> None:
    culprit = once_only(loss, [tensor for value in maps.values() for tensor in as_list(value)])
    if culprit is not None:
        raise ValueError(
            f"the student's task loss cannot be differentiated twice: {culprit} lies between "
            f'{", ".join(map(str, maps))} and the loss. Tap behind it, or take a PyTorch '
            'counterpart of it in the student (BN for SyncBN, say)'
        )


def _check_gradient(term: Term, student: Maps) -> None:
    if not any(tensor.requires_grad for tensor in as_list(student)):
        raise ValueError(
            f"distill.{term.name}: no gradient flows into '{term.student_tap}' of the student. It "
            'lies in a frozen part, or inside a block with activation checkpointing '
            '(`with_cp=True`); tap what comes after it'
        )


def _not_finite(term: Term, loss: Tensor, student: Maps, teacher: Maps) -> str:
    iteration = MessageHub.get_current_instance().runtime_info.get('iter', 0)
    return (
        f'distill.{term.name}: the loss is {loss.item()} at iteration {iteration}. '
        f"'{term.student_tap}' of the student: {_ranges(student)}. "
        f"'{term.teacher_tap}' of the teacher: {_ranges(teacher)}. "
        'Lower the learning rate or `loss_weight`, add gradient clipping, or train without AMP'
    )


def _ranges(maps: Maps) -> str:
    return '; '.join(
        f'{tuple(t.shape)} {t.min().item():.3g} to {t.max().item():.3g}, '
        f'{(~torch.isfinite(t)).sum().item()} of {t.numel()} not finite'
        for t in as_list(maps)
    )
