"""Term: one line of the ``distill`` config, from taps to a weighted loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmkd_plugin.building import build_module, check_compile, prefixed
from mmkd_plugin.explanations import Explainer
from mmkd_plugin.losses.numerics.checks import ADD_CONV, ADD_RESIZE
from mmkd_plugin.losses.traits import LossTraits
from mmkd_plugin.queries import BEFORE_DECODER, MEMORY, Queries
from mmkd_plugin.taps import Maps, Taps, as_list
from mmkd_plugin.teachers.base import Passage, Teacher
from mmkd_plugin.teachers.classes import Compared, check_same_classes
from mmkd_plugin.terms.auto_weight import AutoWeight
from mmkd_plugin.terms.combining import Combination
from mmkd_plugin.terms.compiled import Compiled
from mmkd_plugin.terms.connecting import build_connectors, convert, describe, fit_all
from mmkd_plugin.terms.gradient_sizes import Sizes
from mmkd_plugin.terms.lines import check_line, loss_of, teachers_of
from mmkd_plugin.terms.needs import FROM_BATCH, FROM_NORM, FROM_ROIS, FROM_RUN, FROM_STUDENT
from mmkd_plugin.terms.norms import NormConstants
from mmkd_plugin.terms.outside import Outside
from mmkd_plugin.terms.refusals import (
    check_classes,
    check_combined,
    check_explainer,
    check_maps,
    check_needs,
    check_queries,
    check_raw,
    check_rois,
    check_through,
    on_rois,
)
from mmkd_plugin.terms.schedule import Schedule
from mmkd_plugin.terms.teacher_connector import build_teacher_connectors
from mmkd_plugin.terms.through import Through
from mmkd_plugin.terms.trial import buffers_kept, problem_of
from mmkd_plugin.terms.watch import Watch
from mmkd_plugin.views import View
from mmkd_plugin.words import some


class Term(nn.Module):
    """One loss between a place in the student and a place in a teacher.

    Args:
        name (str): Key in the ``distill`` config. The log shows ``distill.<name>.loss``.
        student_tap (Taps): Taps in the student.
        teacher_tap (Taps): Taps in the teacher.
        loss (nn.Module): Takes the student's and the teacher's map, or two lists of maps, and
            returns a weighted scalar. :class:`LossTraits` describes its declarations. A method
            ``setup(student_channels, teacher_channels)`` is called once at build time, with the
            channels of each map as the loss gets it.
        teacher (str | list[str]): Name of the teacher, or of several whose class scores are
            combined. Defaults to ``'teacher'``.
        combine (str, optional): How several teachers are combined: ``'mean'``, ``'confidence'`` or
            ``'labels'``; see :func:`~mmkd_plugin.terms.combining.combined_scores`. Defaults to
            None: ``'mean'``.
        explainer (Explainer, optional): Explains class scores by the maps. The loss compares these
            explanations instead of the maps. Defaults to None.
        connector (dict | list[dict] | None | 'auto'): Converts the student's maps. ``'auto'`` adds
            a 1×1 convolution if the loss compares channels and their numbers differ. A dict is
            built once for each map, with ``in_channels`` and ``out_channels`` filled in. None adds
            nothing. Defaults to ``'auto'``.
        teacher_connector (dict, optional): Converts the teacher's maps: a frozen module, with the
            file of its trained weights as ``checkpoint``. Defaults to None.
        norm (str | list[str], optional): Names of the teacher's batch norms that feed the maps, for
            a loss that needs them. Defaults to None: they are found.
        through (Through, optional): Where the student's maps go into the teacher. The loss compares
            what comes out at ``teacher_tap`` with the teacher's own maps there. Defaults to None:
            it compares the student's maps.
        queries (Queries, optional): The queries that both decoders are asked once more. The loss
            compares their answers, and the taps are the encoder of the student and the decoder of
            the teacher. Defaults to None.
        schedule (Schedule, optional): When the term is on. Defaults to None: always.
        compile (bool): Whether the loss runs through torch.compile in training. Defaults to False.
        auto (AutoWeight, optional): Finds the ``loss_weight`` of the loss during training. Defaults
            to None: it is what it is.

    Raises:
        ValueError: If loss, explainer and connectors do not go together.

    Examples:
        >>> import torch
        >>> from mmkd_plugin import Term
        >>> config = dict(tap='backbone.layer4', loss=dict(type='mmkd_plugin.HintLoss'))
        >>> term = Term.from_config('hint', config, teachers=['teacher'])
        >>> student, teacher = torch.rand(2, 8, 4, 4), torch.rand(2, 16, 4, 4)
        >>> term.connect(student, teacher)
        >>> term(student, teacher).shape
        torch.Size([])
    """

    def __init__(
        self,
        name: str,
        student_tap: Taps,
        teacher_tap: Taps,
        loss: nn.Module,
        *,
        teacher: str | Sequence[str] = 'teacher',
        combine: str | None = None,
        explainer: Explainer | None = None,
        connector: dict | list | str | None = 'auto',
        teacher_connector: dict | None = None,
        norm: str | Sequence[str] | None = None,
        through: Through | None = None,
        queries: Queries | None = None,
        schedule: Schedule | None = None,
        compile: bool = False,
        auto: AutoWeight | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.here = f'distill.{name}'
        self.teachers = (teacher,) if isinstance(teacher, str) else tuple(teacher)
        self.teacher = self.teachers[0]
        self.combination = Combination.of(self.here, self.teachers, combine)
        self.loss = loss
        self.traits = LossTraits.of(loss)
        self.schedule = schedule or Schedule()
        self.explainer = explainer
        self.connectors = nn.ModuleList()
        self._counts = 0, 0  # maps of each model
        self.teacher_connectors = Outside()
        self.norm_names = [norm] if isinstance(norm, str) else norm
        self.norms: NormConstants | None = None
        self.compiled = Compiled(self.here) if compile else None
        self.auto = auto
        self.watch = Watch(self.here, type(loss).__name__, self.traits, f"'{student_tap}'")
        self._connector = connector
        self._teacher_connector = teacher_connector
        self.through = through
        self.queries = queries
        check_needs(self)
        check_raw(self, converts=connector not in ('auto', None) or teacher_connector)
        if through is not None:
            check_through(self, teacher_connector)
        if queries is not None:
            check_queries(self, connector, teacher_connector)
        if explainer is not None:
            check_explainer(self, converts=connector not in ('auto', None) or teacher_connector)
        elif self.traits.compares == 'explanations':
            raise ValueError(
                f'{self.here}: {type(loss).__name__} compares explanations; add '
                "explainer=dict(type='mmkd_plugin.GradCAM', scores='decode_head.conv_seg')"
            )
        words = dict(term=self.here, loss=type(loss).__name__)
        entrance = None if through is None else through.taps
        kind = 'explanations' if explainer is not None else self.traits.compares
        kind = kind if queries is None else 'queries'
        words['queries'] = queries
        if kind == 'maps' and through is None and on_rois(self.here, student_tap, teacher_tap):
            check_rois(self, student_tap, teacher_tap)
            kind, words['rois'] = 'rois', student_tap
        assigned = any(need in FROM_STUDENT for need in self.traits.needs)
        self.student_view = View(
            student_tap, kind, explainer, 'student', assigned=assigned, **words
        )
        self.teacher_view = View(
            teacher_tap, kind, explainer, 'teacher', entrance=entrance, **words
        )
        if self.combination is not None:
            check_combined(self)

    @property
    def student_tap(self) -> Taps:
        """The taps in the student."""
        return self.student_view.taps

    @property
    def teacher_tap(self) -> Taps:
        """The taps in the teacher."""
        return self.teacher_view.taps

    @property
    def on_rois(self) -> bool:
        """Whether it compares RoI heads, on the RoIs that the student samples."""
        return self.student_view.rois is not None

    @property
    def needs_of_batch(self) -> tuple[str, ...]:
        """The needs of its loss that a batch may have to give."""
        needs = self.traits.needs
        return tuple(n for n in needs if n not in FROM_ROIS) if self.on_rois else needs

    @property
    def needs_labels(self) -> str | None:
        """Why it cannot learn from images without labels; None if it can."""
        loss = type(self.loss).__name__
        if self.traits.compares == 'gradients':
            return f'{loss} compares gradients of the task loss'
        if self.on_rois:
            return 'it compares RoIs, which the student samples by the ground-truth boxes'
        combined = () if self.combination is None else self.combination.needs
        for need in (*self.traits.needs, *combined):
            if need in FROM_STUDENT:
                return f"{loss} needs what the student's assigner finds"
            if need in FROM_BATCH and FROM_BATCH[need].labels:
                return f'{loss} needs labels ({FROM_BATCH[need].words})'
        return None

    @property
    def compared(self) -> Compared | None:
        """What it compares class by class if these are class scores; None if nothing.

        Of explanations, these are the class scores. Scores that come out of the teacher on both
        sides have one order.
        """
        if self.through is not None or self.queries is not None:
            return None
        if self.explainer is not None:
            return Compared(self.here, self.student_view.scores, self.teacher_view.scores)
        if self.traits.compares == 'gradients':
            return Compared(self.here, self.student_tap, self.teacher_tap, gradients=True)
        as_they_are = self._connector in ('auto', None) and self._teacher_connector is None
        if not (as_they_are and self.traits.needs_same_channels):
            return None
        taps = self.student_tap, self.teacher_tap
        return Compared(self.here, *taps, self.traits.compares_probabilities)

    @classmethod
    def from_config(
        cls, name: str, config: Any, teachers: Sequence[str], compile: bool = False
    ) -> Term:
        """Builds a term from its line in the config.

        Args:
            name (str): Key of the line.
            config (dict): The line.
            teachers (Sequence[str]): Names of all teachers.
            compile (bool): Whether the loss is compiled if the line has no ``compile``. Defaults to
                False.

        Returns:
            Term: The term. It has no connectors until :meth:`connect`.

        Raises:
            ValueError: If a key is unknown or missing, or a value cannot be used.
        """
        here = f'distill.{name}'
        check_line(here, name, config)
        taught_by = teachers_of(here, config, teachers)
        compile = check_compile(config.get('compile', compile), f'{here}.')
        explainer = config.get('explainer')
        if explainer is not None:
            explainer = build_module(explainer, f'{here}.explainer')
        try:
            queries = Queries.from_config(here, config.get('queries'))
            taps = (config.get('tap'),) * 2 if queries is None else (MEMORY, BEFORE_DECODER)
            student_tap = Taps.parse(config.get('student_tap', taps[0]))
            teacher_tap = Taps.parse(config.get('teacher_tap', taps[1]))
            loss, share = loss_of(config['loss'], f'{here}.loss')
            return cls(
                name,
                student_tap,
                teacher_tap,
                loss,
                teacher=taught_by,
                combine=config.get('combine'),
                explainer=explainer,
                connector=config.get('connector', 'auto'),
                teacher_connector=config.get('teacher_connector'),
                norm=config.get('norm'),
                through=Through.from_config(here, config.get('through')),
                queries=queries,
                schedule=Schedule.from_config(f'{here}.schedule', config.get('schedule')),
                compile=compile,
                auto=None if share is None else AutoWeight(share),
            )
        except ValueError as error:
            raise ValueError(prefixed(here, error)) from error

    def connect(
        self,
        student: Maps,
        teacher: Maps,
        given: dict[str, Any] | None = None,
        *,
        source: Teacher | None = None,
        classes: int | None = None,
        passage: Passage | None = None,
    ) -> None:
        """Builds the connectors and tries the loss on the maps of a dry forward.

        Args:
            student (Tensor | list[Tensor]): Maps ``(N, C, H, W)`` of the student for
                ``student_view``.
            teacher (Tensor | list[Tensor]): Maps of the teacher for ``teacher_view``.
            given (dict, optional): Arguments of the loss from the batch of the same images and
                from the student, by name. Defaults to None.
            source (Teacher, optional): The teacher. It knows the batch norms that feed its maps and
                the number of its classes. Defaults to None.
            classes (int, optional): Number of classes of the student's head around the tap.
                Defaults to None: not known.
            passage (Passage, optional): The way through the teacher for maps of these images, if
                the term has a ``through``. Defaults to None.

        Raises:
            ValueError: If the loss cannot take these shapes, or maps of such a teacher.
            FileNotFoundError: If the weights of a ``teacher_connector`` do not exist.
        """
        students, teachers = as_list(student), as_list(teacher)
        if self.through is not None and passage is None:
            raise ValueError(
                f"{self.here}.through: teacher '{self.teacher}' cannot run on maps of the student; "
                'that takes a trained model that runs beside it (a teacher without `type`)'
            )
        check_maps(self, students, teachers if passage is None else passage.maps)
        if source is not None:
            self.check_source(source)
            if self._connector == 'auto':
                check_classes(self, students[0], teachers[0], source, classes)
        if any(need in FROM_NORM for need in self.traits.needs):
            self._take_norms(source, len(teachers))
        if self._teacher_connector is not None:
            self.teacher_connectors[:] = build_teacher_connectors(
                self._teacher_connector, teachers, self.name
            )
        with torch.no_grad():
            pairs = list(zip(students, self._convert_teacher(teachers)))
            self.connectors = self._build_connectors(pairs, passage)
        self._counts = len(students), len(teachers)
        behind = self._try(student, teacher, given, passage, pairs)
        self.watch.channels(behind)
        if self.auto is not None:
            with buffers_kept(self.loss):
                self._prepare_auto(len(pairs), student, teacher, given, passage)

    def _try(
        self,
        student: Maps,
        teacher: Maps,
        given: dict[str, Any] | None,
        passage: Passage | None,
        pairs: Sequence[tuple[Tensor, Tensor]],
    ) -> list[Tensor]:
        """Computes the loss once; returns the student's maps behind the connectors."""
        training = self.training
        try:  # in eval mode: batch norms of connectors refuse maps of one position in training
            with torch.no_grad():
                behind = self.eval()._behind(as_list(student), passage)
                self._set_up(behind, pairs)
            with buffers_kept(self.loss):  # a memory shall know no made-up image
                with torch.no_grad():
                    self(student, teacher, given, passage)
                problem = problem_of(lambda s, t: self(s, t, given, passage), student, teacher)
        except Exception as error:  # whatever a foreign loss or connector makes of these maps
            shapes = ', '.join(f'{tuple(s.shape)} and {tuple(t.shape)}' for s, t in pairs[:2])
            places = f"'{self.student_tap}' of the student with '{self.teacher_tap}' of the teacher"
            raise ValueError(
                f'{self.here}: {type(self.loss).__name__} cannot compare '
                f'{"the answers of both decoders" if self.queries is not None else places} '
                f'(in a trial: {shapes}): {_words(error, self._connector)}'
            ) from error
        finally:
            self.train(training)
        if problem is not None:
            kind, owner = type(self.loss).__name__, _not_finite(self, student, teacher)
            arguments = self.loss.extra_repr()
            raise ValueError(
                f'{self.here}: {kind} {problem} in a trial, because {owner} is not finite; look at '
                'the `mean` and `std` of its data_preprocessor, and at its weights'
                if owner
                else f'{self.here}: {kind} {problem} in a trial, so it cannot teach; look at its '
                + (f'arguments: {arguments}' if arguments else '`forward`')
            )
        return behind

    def check_source(self, source: Teacher) -> None:
        """Refuses a teacher whose queries or stored maps mean something else.

        Raises:
            ValueError: If so.
        """
        if self.queries is not None:
            check_same_classes(self.here, source.class_names, source.name)
        if source.warped:
            self.check_stored()

    def _build_connectors(
        self, pairs: Sequence[tuple[Tensor, Tensor]], passage: Passage | None
    ) -> nn.ModuleList:
        if self.through is None:
            return build_connectors(self._connector, pairs, self.traits, self.here)
        students = [s for s, _ in pairs]
        return self.through.connectors(
            self._connector, students, passage.maps, self.here, self.student_tap
        )

    def _behind(self, students: Sequence[Tensor], passage: Passage | None) -> list[Tensor]:
        """Returns the student's maps as the loss gets them, without resizing."""
        if self.through is None:
            return convert(self.connectors, students)
        return passage.run(self.through.enter(self.connectors, students, passage.maps))

    def _prepare_auto(self, maps: int, *compared: Any) -> None:
        """Finds out how many weights the loss takes: one for each map where that is possible."""
        training = self.training
        try:
            with torch.no_grad():
                once = self.eval()(*compared)
                twice, weights = self._doubled(maps, *compared)
        finally:
            self.train(training)
        # a model that is not initialised yet may give NaN, which says nothing about the weight
        if not torch.isclose(2 * once, twice, rtol=1e-3, equal_nan=True):
            raise ValueError(
                f'{self.here}.loss.loss_weight: {type(self.loss).__name__} does not read its '
                '`loss_weight` in `forward`, so it cannot be found during training; give a number'
            )
        self.auto.for_maps(weights)
        self.loss.loss_weight = 'auto'  # for the plan

    def _doubled(self, maps: int, *compared: Any) -> tuple[Tensor, int]:
        """The loss with a weight of 2 for each map, or for all; and the number of weights."""
        if maps > 1:
            self.loss.loss_weight = (2.0,) * maps
            try:
                return self(*compared), maps
            except (TypeError, ValueError):  # it compares the maps together
                pass
        self.loss.loss_weight = 2.0
        return self(*compared), 1

    def _take_norms(self, source: Teacher | None, count: int) -> None:
        """Computes the arguments of the loss from the batch norms that feed the teacher's maps."""
        try:
            norms = source.norms(self.teacher_tap, self.norm_names) if source else [('', None)]
        except ValueError as error:
            raise ValueError(prefixed(f'{self.here}.norm', error)) from error
        try:
            self.norms = NormConstants(self.traits.needs, norms, bool(source and source.learns))
        except ValueError as error:
            raise ValueError(
                f'{self.here}: {type(self.loss).__name__} needs the weight and the bias of the '
                f"batch norm that feeds '{self.teacher_tap}' of the teacher, and {error}. Name it: "
                "norm='backbone.layer4.2.bn3'"
            ) from None
        if len(norms) != count:
            raise ValueError(
                f'{self.here}: norm has {len(norms)} names for {count} maps; give one for each'
            )

    def _set_up(self, students: Sequence[Tensor], pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Lets the loss build its own modules for the channels behind the connectors."""
        if hasattr(self.loss, 'setup'):
            self.loss.setup([s.shape[1] for s in students], [t.shape[1] for _, t in pairs])
            self.loss.train(self.training)

    def _convert_teacher(self, maps: list[Tensor]) -> list[Tensor]:
        if not self.teacher_connectors:
            return maps
        with torch.no_grad():
            return [connect(x) for connect, x in zip(self.teacher_connectors, maps)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Term:
        for module in self.teacher_connectors:
            module._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def target(self, shown: Sequence[Maps], given: dict[str, Any] | None = None) -> Maps:
        """The maps that the loss compares with, of what the teachers show.

        Args:
            shown (Sequence[Tensor | list[Tensor]]): What each of ``teachers`` shows.
            given (dict, optional): Arguments from the batch. Defaults to None.

        Returns:
            Tensor | list[Tensor]: Those of the only teacher, or of all together.

        Raises:
            ValueError: If several teachers cannot be combined.
        """
        if self.combination is None:
            return shown[0]
        return self.combination(shown, (given or {}).get('labels'))

    def due(self) -> bool:
        """Whether the gradients of this term are measured in this iteration."""
        return self.watch.due() or (self.auto is not None and self.auto.due())

    def forward(
        self,
        student: Maps,
        teacher: Maps,
        given: dict[str, Any] | None = None,
        passage: Passage | None = None,
        measuring: bool = False,
    ) -> Tensor:
        """Computes the weighted loss, without the factor of the schedule.

        Args:
            student (Tensor | list[Tensor]): Maps ``(N, C, H, W)`` of the student, with gradient.
            teacher (Tensor | list[Tensor]): Maps of the teacher.
            given (dict, optional): Arguments of the loss from the batch and from the student, by
                name. Entries that the loss does not need are ignored. Defaults to None.
            passage (Passage, optional): The way through the teacher for maps of this batch, if the
                term has a ``through``. Defaults to None.
            measuring (bool): Whether it is for a measurement of the weight, and not trained on.
                Defaults to False.

        Returns:
            Tensor: A scalar.

        Raises:
            ValueError: If the number of maps differs from that of the dry forward, or the loss
                cannot compare the maps.
        """
        students, teachers = as_list(student), as_list(teacher)
        if (len(students), len(teachers)) != self._counts:
            raise ValueError(
                f'{self.here}: {len(students)} maps of the student and {len(teachers)} of the '
                'teacher, where the dry forward at build time gave '
                f'{" and ".join(map(str, dict.fromkeys(self._counts)))}'
            )
        teachers = self._convert_teacher(teachers)
        if self.through is not None:
            students = self._behind(students, passage)
        else:
            same_size = self.traits.needs_same_size and not self.traits.needs_raw_maps
            students = fit_all(self.connectors, students, teachers, same_size)
        if len(students) == 1:
            students, teachers = students[0], teachers[0]
        if self.training and not self.on_rois:  # no row is an image there
            self.watch.maps(as_list(students))
        arguments = {need: (given or {}).get(need) for need in self.traits.needs}
        for need in FROM_RUN.keys() & arguments.keys():
            arguments[need] = FROM_RUN[need](self.name, as_list(teachers)[0].device)
        if self.norms is not None:
            arguments |= self.norms()
        if self.auto is not None and self.auto.ready:
            self.loss.loss_weight = self.auto.current(measuring)
        if self.compiled is not None and self.training:
            return self.compiled(self.loss, students, teachers, **arguments)
        return self.loss(students, teachers, **arguments)

    def passed(self, loss: Tensor) -> None:
        """Notes that an iteration is trained with this loss."""
        self.watch.value(loss)
        if self.auto is not None:
            self.auto.steps += 1

    def take(self, sizes: Sizes) -> Sizes:
        """Takes a measurement of gradients: for the weight, and to see if the term teaches.

        Args:
            sizes (Sizes): The sizes of the gradients.

        Returns:
            Sizes: The sizes with the weight that was found.
        """
        if self.auto is not None:
            sizes = self.auto.update(sizes)
        if self.watch.due():
            self.watch.gradient(sizes)
        return sizes

    def check_stored(self) -> None:
        """Refuses to learn from stored maps if only those of the teacher itself are right.

        Raises:
            ValueError: If so.
        """
        if self.traits.needs_raw_maps:
            raise ValueError(
                f'{self.here}: {type(self.loss).__name__} compares what the heads give as it is, '
                'and maps of a cache are resized and mirrored with the image, which the boxes that '
                'they stand for are not. Train this one with the teacher itself'
            )

    def describe_connectors(self) -> str:
        """Describes the connectors for the plan."""
        return describe(self.connectors, self.teacher_connectors)


def _not_finite(term: Term, student: Maps, teacher: Maps) -> str:
    """Whose maps of a trial are not finite before anything is compared, empty if all are."""
    named = some(f"'{name}'" for name in term.teachers)
    for maps, tap, owner in (
        (teacher, term.teacher_tap, f'teacher {named}'),
        (student, term.student_tap, 'the student'),
    ):
        if not all(bool(torch.isfinite(x).all()) for x in as_list(maps)):
            return f"'{tap}' of {owner}"
    return ''


def _words(error: Exception, connector: Any) -> str:
    """What a trial failed with; a connector that the config names is not to be named again."""
    text = str(error)
    if not isinstance(error, (ValueError, RuntimeError)):
        return f'{type(error).__name__}: {text}'
    for hint in (ADD_CONV, ADD_RESIZE) if connector not in ('auto', None) else ():
        text = text.replace(hint, f"what `connector` gives has to fit the teacher's; or {hint}")
        text = text.removesuffix(', or name one')
    return text
