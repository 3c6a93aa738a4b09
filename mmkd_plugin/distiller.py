"""Distiller: trains a student with teachers, and is the student in everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import broadcast, get_world_size
from mmengine.logging import MessageHub, print_log
from torch import Tensor, nn

from mmkd_plugin.building import check_compile, named_arguments
from mmkd_plugin.diagnosis import findings, shown_to, told_of
from mmkd_plugin.foreign import errors_named, is_ours
from mmkd_plugin.health import NotFiniteError, first_unusable
from mmkd_plugin.ingredients import build_student, build_teachers, build_terms, task_of
from mmkd_plugin.parts import STEP
from mmkd_plugin.plan import plan
from mmkd_plugin.registry import MODELS
from mmkd_plugin.student import Seen, StudentForward
from mmkd_plugin.student_names import NamedAsStudent
from mmkd_plugin.student_start import StudentStart
from mmkd_plugin.student_state import (
    name_as_the_student,
    put_student_in_front,
    take_student_from_front,
)
from mmkd_plugin.suspects import told_of_parts
from mmkd_plugin.taps import Maps, Tap, Taps, as_list, classes_around, module_around
from mmkd_plugin.taps.class_scores import ClassScores, are_independent
from mmkd_plugin.taps.dry_run import DryRun, UntriedError, advice_alone, maps_near
from mmkd_plugin.taps.example import random_state_kept
from mmkd_plugin.teachers.base import Batch, Lesson, Preview, Teacher, Trial
from mmkd_plugin.teachers.classes import (
    ClassOrder,
    Names,
    ScoresOfTaps,
    arranged_preview,
    classes_at_build,
    classes_of_run,
    orders_of,
    warn_of_zero_label,
)
from mmkd_plugin.teachers.configs import teacher_configs
from mmkd_plugin.terms.measuring import aliases, check_task_for, measure_terms
from mmkd_plugin.terms.needs import from_batch, from_student
from mmkd_plugin.terms.refusals import check_scores
from mmkd_plugin.terms.schedule import Schedule, check_come_on, check_meet
from mmkd_plugin.terms.term import Term
from mmkd_plugin.terms.without_labels import UnlabelledStep, carry_unlabelled, together
from mmkd_plugin.unlabelled import Unlabelled
from mmkd_plugin.views import View
from mmkd_plugin.words import first_line

#: What a config without one of the required keys is told.
MISSING = dict(
    student="the model that trains: student=dict(type='EncoderDecoder', ...)",
    teacher="what it learns from: teacher=dict(config='...', checkpoint='...')",
    distill='the terms: distill=dict(cwd=dict(tap=..., loss=dict(type=...)))',
)


@MODELS.register_module()
class Distiller(NamedAsStudent):
    """Trains a student with terms that compare it to teachers.

    ``mode='loss'`` returns the student's own losses and one ``distill.<term>.loss`` for each term
    that is on. In everything else the Distiller is the student: predictions, the state dict, the
    names of the parameters, and each attribute that the Distiller does not have.

    Args:
        student (dict | nn.Module): A model that trains by itself: any mmengine ``BaseModel``.
        teacher (dict | list[dict]): One teacher or several. Without ``type`` it is a trained model
            that runs beside the student, with the keys ``config`` (a path, a ``pkg::`` path or a
            model dict), ``checkpoint``, ``strict``, ``name`` and ``inference``. With ``type`` it is
            another kind of teacher, with the arguments of its class. In a list each teacher needs
            a ``name``.
        distill (dict[str, dict]): The terms by name. A term has ``tap`` (or ``student_tap`` and
            ``teacher_tap``) and ``loss``, and optionally ``teacher``, ``combine``,
            ``explainer``, ``connector``, ``teacher_connector``, ``norm``, ``through``,
            ``queries``, ``schedule`` and ``compile``. See :class:`Term` and :class:`Schedule`.
        task (dict, optional): ``loss_weight`` and ``schedule`` of the student's own losses. While
            they are off the student stops after its last tap, unless a loss needs its assigner.
            Defaults to None: weight 1, always on.
        init_student_from_teacher (list[str] | dict[str, list[str]], optional): Names of modules
            that both models have: before training the student gets the teacher's weights there.
            With several teachers by the name of the teacher. Defaults to None: nothing is copied.
        data_preprocessor (dict, optional): Data preprocessor of a student whose own config has
            none. The runner fills it in. Defaults to None.
        compile (bool): Whether the losses of the terms run through torch.compile in training. A
            term's own ``compile`` overrides it. Defaults to False.
        unlabelled (dict, optional): Images without labels, for the terms alone: ``dataset``,
            ``ratio``, ``only`` and ``pseudo_labels`` of an :class:`Unlabelled`. Defaults to None.

    Raises:
        ValueError: If a term, a tap or a teacher cannot be used. Most mistakes are found in the
            constructor; ``forward`` finds the rest.
        NotFiniteError: In ``forward``, if a loss is not finite, or far too large.

    Attributes:
        student (nn.Module): The student.
        distill (nn.ModuleDict): The :class:`Term` objects by name.
        teachers (dict[str, Teacher]): All teachers by name.
        self_teachers (nn.ModuleDict): The teachers that are trained along, which are in
            ``teachers`` too.

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

    @named_arguments('model', MISSING)
    def __init__(
        self,
        student: dict | nn.Module,
        teacher: dict | Sequence[dict],
        distill: dict,
        task: dict | None = None,
        init_student_from_teacher: list | dict | None = None,
        data_preprocessor: dict | None = None,
        compile: bool = False,
        unlabelled: dict | None = None,
    ) -> None:
        config = student if isinstance(student, dict) else None
        student = build_student(student, data_preprocessor)
        with random_state_kept():  # the student starts as it would alone
            super().__init__(data_preprocessor=student.data_preprocessor)
            self.student = student
            configs = teacher_configs(teacher)
            self.distill = nn.ModuleDict(
                build_terms(distill, list(configs), check_compile(compile))
            )
            used = {name for term in self.distill.values() for name in term.teachers}
            self.teachers = build_teachers(configs, used)
            self.self_teachers = nn.ModuleDict(
                {name: one for name, one in self.teachers.items() if one.learns}
            )
            self.task_weight, self.task_schedule = task_of(task)
            self.unlabelled = Unlabelled.from_config(unlabelled)
            self._unlabelled_step = self._prepare_unlabelled()
            check_task_for(self.distill.values(), self.task_weight)
            self._start = StudentStart(
                init_student_from_teacher, student, self.teachers, classes_at_build()
            )
            self._run_student = self._connect(config)
        self._checked_schedules = False
        self._register_state_dict_hook(put_student_in_front)
        self.register_load_state_dict_post_hook(name_as_the_student)
        self.names_in_front()

    def _prepare_unlabelled(self) -> UnlabelledStep | None:
        """Decides which terms learn from images without labels; None if there are none."""
        if self.unlabelled is None:
            return None
        carry_unlabelled(self.data_preprocessor)
        if self.unlabelled.only and self.unlabelled.pseudo is None:
            self.task_weight = 0.0
        return UnlabelledStep(self.unlabelled, self.student, self.distill.values(), self.teachers)

    def _connect(self, config: dict | None) -> StudentForward:
        """Tries student and teachers once, connects the terms, and logs the plan."""
        device, terms = torch.device(get_device()), list(self.distill.values())
        views = [term.student_view for term in terms]
        with _taps_named(terms, self.teachers), _parts_named(config):
            forward = StudentForward(self.student, views, self._student_taps(), device)
        sync = any(isinstance(m, nn.SyncBatchNorm) for m in self.student.modules())
        preprocessor = self.student.data_preprocessor
        trial = Trial(config, preprocessor, forward.run, sync, forward.sampled, forward.own)
        with _taps_named(terms, self.teachers):
            previews = {
                name: _prepared(name, teacher, trial, terms, device)
                for name, teacher in self.teachers.items()
            }
        queries = {
            term.student_view: previews[term.teacher].queries[term.teacher_view]
            for term in terms
            if term.queries is not None
        }
        student = forward.preview(self.student, views, device, queries)
        assigned = forward.assigned(self.student, device)
        self._class_scores = {name: dict(one.classes) for name, one in previews.items()}
        orders = self._arrange_classes(student.classes, classes_at_build())
        previews = {name: arranged_preview(one, orders[name]) for name, one in previews.items()}
        inputs = torch.zeros(1, forward.run.channels, student.size, student.size)
        for term in terms:
            teacher, preview = self.teachers[term.teacher], previews[term.teacher]
            ours, theirs = term.student_view, term.teacher_view
            self._combine(term, student, previews)
            check_scores(term.here, student.scores.get(ours), preview.scores.get(theirs))
            given = from_batch(inputs, forward.run.samples, _asking([term]), 'data of this kind')
            given |= from_student(ours, assigned, forward.sampled)
            with _maps_named(forward.run, term, student.shown[ours]):
                term.connect(
                    student.shown[ours],
                    term.target(shown_to(term, previews), given),
                    given,
                    source=teacher,
                    classes=classes_around(self.student, term.student_tap.taps[0]),
                    passage=preview.passages.get(theirs),
                )
        text = plan(self.distill, self.teachers, student, previews, forward.run.problem)
        if self.task_weight != 1 or self.task_schedule != Schedule():
            text += f'\ntask loss: weight {self.task_weight:g}, on {self.task_schedule}'
        if str(self._start):
            text += f'\n{self._start}'
        if self._unlabelled_step is not None:
            text += f'\n{self._unlabelled_step}'
        self.plan = text
        failed = forward.run.problem is not None
        self._untried = _odd_parts(config) or advice_alone('trains', 'train') if failed else None
        print_log(f'\n{text}', logger='current')
        forward.forget()
        return forward

    def _combine(self, term: Term, student: Preview, previews: Mapping[str, Preview]) -> None:
        """Shows a term with several teachers how their class scores lie in the maps."""
        if term.combination is None:
            return
        for name in term.teachers[1:]:
            term.check_source(self.teachers[name])
        head = module_around(self.student, term.student_tap.taps[0], 'num_classes')
        term.combination.connect(
            _scores_at(term.student_tap, student),
            [_scores_at(term.teacher_tap, previews[name]) for name in term.teachers],
            bool(head is not None and are_independent(head)),
        )

    def _arrange_classes(
        self, student: ScoresOfTaps, names: Names | None
    ) -> dict[str, dict[Tap, ClassOrder]]:
        """Brings class scores of teachers into the student's order; says how, by the teacher."""
        orders = {}
        for name, teacher in self.teachers.items():
            terms = [term.compared for term in self.distill.values() if name in term.teachers]
            compared = [one for one in terms if one is not None]
            scores, both = self._class_scores[name], (names, teacher.class_names)
            orders[name] = orders_of(compared, student, scores, both, f"teacher '{name}'")
            warn_of_zero_label(
                *(compared, student, scores, both, teacher.reduces_zero, f"teacher '{name}'")
            )
            if teacher.class_names is not None:
                teacher.arrange(orders[name])
        self._classes = names
        return orders

    def _student_taps(self) -> list[Tap]:
        """Returns the taps at which teachers read the student."""
        return [tap for teacher in self.teachers.values() for tap in teacher.student_taps]

    def forward(
        self,
        inputs: Tensor,
        data_samples: list | None = None,
        mode: str = 'tensor',
        unlabelled: dict | bool | None = None,
    ) -> Any:
        """Runs the student, and in ``mode='loss'`` the teachers and the terms that are on.

        Args:
            inputs (Tensor): Images ``(N, C, H, W)`` from the data preprocessor.
            data_samples (list, optional): Their data samples. Defaults to None.
            mode (str): ``'loss'``, ``'predict'`` or ``'tensor'``. Defaults to ``'tensor'``.
            unlabelled (dict | bool, optional): ``inputs`` and ``data_samples`` of images without
                labels beside these; True if these have none. Defaults to None.

        Returns:
            dict | list | Tensor: The output of the student; in ``mode='loss'`` with the losses of
            the terms added.

        Raises:
            ValueError: If all schedules are off, a schedule starts after the end of the run, or a
                term cannot compare the maps.
            NotFiniteError: If a loss is not finite, or far too large.
        """
        if mode != 'loss':
            return self.student(inputs, data_samples, mode=mode)
        self._meet_classes()
        factors, task = self._factors()
        active = [term for name, term in self.distill.items() if factors[name] > 0]
        self._check_not_idle(active, task)
        batch, step = Batch(inputs, data_samples, _position('iter')), self._unlabelled_step
        if step is None:
            losses = self._learn(batch, active, factors, task)
        elif self.unlabelled.only:
            batch = step.batch(unlabelled, batch)
            losses = self._learn_without_labels(batch, active, factors, task)
        else:
            more = step.batch(unlabelled, batch)
            losses = self._learn(batch, active, factors, task)
            those = [term for term in active if term.name in step.names]
            found = self._learn_without_labels(more, those, factors, task, measured=False)
            losses = together(losses, found, len(inputs), len(more.inputs))
        return losses | self._of_idle_terms(inputs, active, task)

    def _learn(
        self,
        batch: Batch,
        active: Sequence[Term],
        factors: Mapping[str, float],
        task: float,
        *,
        labelled: bool = True,
        measured: bool = True,
    ) -> dict[str, Any]:
        """Returns the losses of a batch: those of the student, of teachers, and of terms.

        Args:
            batch (Batch): The batch.
            active (Sequence[Term]): The terms to compute.
            factors (Mapping[str, float]): Factor on each term.
            task (float): Factor on the student's own losses.
            labelled (bool): Whether teachers that learn take part. Defaults to True.
            measured (bool): Whether the gradients of terms are looked at. Defaults to True.
        """
        lessons = self._taught(batch, active, after_student=False, labelled=labelled)
        chosen = {
            term.student_view: lessons[term.teacher].chosen[term.teacher_view]
            for term in active
            if term.explainer is not None
        }
        queries = {
            term.student_view: lessons[term.teacher].queries[term.teacher_view]
            for term in active
            if term.queries is not None
        }
        views = [term.student_view for term in active]
        named = self._failures_named() if self._untried is not None else nullcontext()
        with STEP.part('student'), named:
            seen = self._run_student(
                self.student,
                batch.inputs,
                batch.data_samples,
                views=views,
                taps=self._student_taps() if labelled else (),
                task=task,
                chosen=chosen,
                queries=queries,
            )
        after = batch._replace(student=seen.maps)
        lessons |= self._taught(after, active, after_student=True, labelled=labelled)
        with STEP.part('teachers'):
            lessons = {
                name: lesson.asked(seen.sampled, seen.own) for name, lesson in lessons.items()
            }
        losses = dict(seen.losses)
        for lesson in lessons.values():
            losses |= lesson.losses
        with STEP.part('terms'):
            compared = self._compared(batch, active, factors, seen, lessons, measured)
        culprit = first_unusable(compared | losses)  # of a term more can be told
        losses |= compared
        if culprit is not None:
            raise NotFiniteError(
                told_of(culprit, losses[culprit], active, seen.shown, lessons),
                culprit,
                losses,
                findings(losses, active, seen.shown, lessons),
            )
        return losses

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        """Puts an error of a student that could not be tried at its start into one line."""
        try:
            yield
        except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError) as e:
            if is_ours(e) or isinstance(e, torch.cuda.OutOfMemoryError):
                raise
            raise ValueError(
                f'the student cannot run, as its trial on a made-up image has shown: '
                f'{first_line(e)}{self._untried}'
            ) from e
        self._untried = None

    def _learn_without_labels(
        self,
        batch: Batch,
        active: Sequence[Term],
        factors: Mapping[str, float],
        task: float,
        measured: bool = True,
    ) -> dict[str, Any]:
        """Returns the losses of images without labels; with pseudo-labels those of the student."""
        batch, task, found = self._unlabelled_step.labelled(batch, task)
        if not active and task == 0:
            return {}
        rest = dict(labelled=False, measured=measured)
        return self._learn(batch, active, factors, task, **rest) | found

    def _taught(
        self, batch: Batch, active: Sequence[Term], after_student: bool, labelled: bool = True
    ) -> dict[str, Lesson]:
        """Returns the lessons of the teachers that run before, or after, the student."""
        with STEP.part('teachers'):
            return {
                name: teacher.teach(batch, views)
                for name, teacher in self.teachers.items()
                if bool(teacher.student_taps) is after_student
                and ((views := _views(name, active)) or teacher.learns)
                and (labelled or not teacher.learns)
            }

    def _compared(
        self,
        batch: Batch,
        active: Sequence[Term],
        factors: Mapping[str, float],
        seen: Seen,
        lessons: Mapping[str, Lesson],
        measured: bool = True,
    ) -> dict[str, Tensor]:
        """Returns the losses of the terms that are on."""
        given = from_batch(batch.inputs, batch.data_samples, _asking(active))
        pairs = {
            term: (seen.shown[term.student_view], term.target(shown_to(term, lessons), given))
            for term in active
        }
        ways = {term: lessons[term.teacher].passages.get(term.teacher_view) for term in active}
        learning = torch.is_grad_enabled()
        for term, (student, _) in pairs.items() if learning else ():
            _check_gradient(term, student)
        looking = learning and self.training and measured
        due = [term for term in active if looking and term.due()]
        pairs |= {term: (aliases(pairs[term][0]), pairs[term][1]) for term in due}
        each = {
            term: given | from_student(term.student_view, seen.assigned, seen.sampled)
            for term in active
        }
        values = {
            term: term(
                *maps, each[term], ways[term], measuring=term in due and term.auto is not None
            )
            for term, maps in pairs.items()
        }
        if due:
            task = self.student.parse_losses(seen.losses)[0] if seen.losses else None
            asked = {term: values[term] for term in due}
            measure_terms(asked, task, seen.maps, {term: pairs[term][0] for term in due})
            weighted = [term for term in due if term.auto is not None]
            values |= {term: term(*pairs[term], each[term], ways[term]) for term in weighted}
        for term, value in values.items() if looking else ():
            term.passed(value)
        return {
            f'distill.{term.name}.loss': value * factors[term.name]
            for term, value in values.items()
        }

    def _of_idle_terms(
        self, inputs: Tensor, active: Sequence[Term], task: float
    ) -> dict[str, Tensor]:
        """Returns zeros that terms which are off need in the log and in DDP."""
        losses = {}
        for name, term in self.distill.items():
            if term.schedule.is_over(_position(term.schedule.counter)):
                # without it mmengine's log shows the last value until the end
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

    def _meet_classes(self) -> None:
        """Arranges class scores by the data set of the run, if other classes were known before."""
        names = classes_of_run()
        if names is not None and names != self._classes:
            self._arrange_classes(self._run_student.run.scores, names)

    def _check_not_idle(self, active: Sequence[Term], task: float) -> None:
        if not active and task == 0 and not self.self_teachers:
            raise ValueError(
                'there is nothing to learn now: the task loss is off, and so are all terms of '
                '`distill`; let their schedules meet'
            )

    def _factors(self) -> tuple[dict[str, float], float]:
        """Returns the factors of the terms and of the task at the runner's current position."""
        schedules = {f'distill.{name}': term.schedule for name, term in self.distill.items()}
        schedules['task'] = self.task_schedule
        if not self._checked_schedules:
            lengths = MessageHub.get_current_instance().runtime_info
            check_come_on(schedules, lengths)
            if not self.self_teachers:
                counted = schedules.keys() - ({'task'} if self.task_weight == 0 else set())
                check_meet({k: v for k, v in schedules.items() if k in counted}, lengths)
            self._checked_schedules = True
        now = {name: one.factor(_position(one.counter)) for name, one in schedules.items()}
        task = self.task_weight * now.pop('task')
        return {name.partition('.')[2]: factor for name, factor in now.items()}, task

    def init_weights(self) -> None:
        """Initialises the student as without teachers, and then the self-teachers.

        Frozen teachers keep the weights that they loaded. What the student starts with of a teacher
        is copied after its own initialisation.
        """
        self.student.init_weights()
        self._start.copy_into(self.student)
        with random_state_kept():
            for teacher in self.self_teachers.values():
                teacher.init_weights()
        # The runner broadcasts the state dict, and that holds the student alone.
        for value in self.self_teachers.state_dict().values():
            broadcast(value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distiller:
        for teacher in self.teachers.values():
            teacher.apply_to_tensors(fn, recurse)
        return super()._apply(fn, recurse)

    def _load_from_state_dict(
        self,
        state_dict: dict,
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Loads a student's state dict, and the state of terms and self-teachers beside it."""
        take_student_from_front(self, state_dict, prefix, local_metadata)
        self.__dict__['_loading'] = prefix, error_msgs  # for name_as_the_student
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


@contextmanager
def _taps_named(terms: Sequence[Term], teachers: Mapping[str, Teacher]) -> Iterator[None]:
    """Puts the terms in front of an error that names a model and one of their taps."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        of_student = text.startswith('the student')
        read = {t.here: (t.student_view if of_student else t.teacher_view).reads() for t in terms}
        if of_student:
            read |= {f"teacher '{name}'": one.student_taps for name, one in teachers.items()}
        heres = [
            here
            for here, taps in read.items()
            if any(f"'{name}'" in text for tap in taps for name in (tap, tap.path))
        ]
        if not heres or not text.startswith(('the student', 'teacher ', 'self-teacher ')):
            raise
        raise ValueError(f'{" and ".join(heres)}: {text}') from error


@contextmanager
def _parts_named(student: dict | None) -> Iterator[None]:
    """Adds to the error of a student that does not run what looks wrong in its config."""
    try:
        yield
    except UntriedError as error:
        odd = _odd_parts(student)
        if not odd:
            raise
        raise ValueError(f'{error.said}{odd}') from error


def _odd_parts(student: dict | None) -> str:
    return told_of_parts(student, (student or {}).get('_scope_'), 'student')


def _prepared(
    name: str, teacher: Teacher, trial: Trial, terms: Sequence[Term], device: torch.device
) -> Preview:
    """Prepares a teacher, which runs it once on a made-up image."""
    with errors_named(f"teacher '{name}' cannot run on a made-up image"):
        return teacher.prepare(trial, _views(name, terms), device)


def _views(teacher: str, terms: Sequence[Term]) -> list[View]:
    """Returns the views in which terms compare a teacher."""
    return [term.teacher_view for term in terms if teacher in term.teachers]


def _scores_at(taps: Taps, model: Preview) -> list[ClassScores | None]:
    """Returns how class scores lie in each map at some taps."""
    return [one for tap in taps for one in model.classes.get(tap) or (None,)]


def _position(counter: str) -> int:
    """Returns a counter of mmengine's runner, ``'iter'`` or ``'epoch'``."""
    return MessageHub.get_current_instance().runtime_info.get(counter, 0)


def _asking(terms: Sequence[Term]) -> list[tuple[str, tuple[str, ...]]]:
    """Returns the name in messages and the needs of each term's loss, apart from those of RoIs."""
    asking = [(f'{term.here}: {type(term.loss).__name__}', term.needs_of_batch) for term in terms]
    combined = [term.combination for term in terms if term.combination is not None]
    return asking + [(f'{one.here}.combine={one.combine!r}', one.needs) for one in combined]


@contextmanager
def _maps_named(run: DryRun, term: Term, shown: Maps) -> Iterator[None]:
    """Adds to an error what could be tapped in place of tensors that are no maps.

    Such are the scores of queries, and those that a head computes from tokens.
    """
    try:
        yield
    except ValueError as error:
        if all(x.ndim == 4 for x in as_list(shown)):
            raise
        near = maps_near(run, term.student_tap.taps[0])
        raise ValueError(f'{error}. {near}') from error


def _check_gradient(term: Term, student: Maps) -> None:
    if not any(tensor.requires_grad for tensor in as_list(student)):
        raise ValueError(
            f"distill.{term.name}: no gradient flows into '{term.student_tap}' of the student. It "
            'lies in a frozen part, or inside a block with activation checkpointing '
            '(`with_cp=True`); tap what comes after it'
        )
