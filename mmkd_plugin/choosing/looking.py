"""Looks at a model on a made-up image: where it has class scores, features and levels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mmkd_plugin.assigners.heads import head_form
from mmkd_plugin.assigners.rois import score_taps
from mmkd_plugin.queries import BEFORE_DECODER, decoder_watched, has_decoder
from mmkd_plugin.taps import Maps, Tap, TapReader, as_list, places_of
from mmkd_plugin.taps.classifiers import CLASS_SCORES
from mmkd_plugin.taps.dry_run import DryRun, dry_run_student, read_once, trial_copy
from mmkd_plugin.taps.example import EXAMPLE_SIZES, crop_size, example_batch, random_state_kept
from mmkd_plugin.taps.task_gradient import gradients_of
from mmkd_plugin.teachers.classes import Names
from mmkd_plugin.teachers.dense_forward import dense_forward, heads_of
from mmkd_plugin.words import first_line

#: The class scores of each position, and the map that they are made of.
SCORES, TAKEN = Tap(CLASS_SCORES), Tap(CLASS_SCORES, where='input')

DROPOUT = nn.modules.dropout._DropoutNd

#: The modules that give levels, and the one of them that has stages.
ROOTS = ('neck', 'backbone')
STAGED = 'backbone'


@dataclass(frozen=True)
class Level:
    """A map of features.

    Args:
        tap (str): Where it is read.
        channels (int): Its channels.
        stride (float): Pixels per position.
        learns (bool): Whether the task loss has a gradient there. Defaults to True.
    """

    tap: str
    channels: int
    stride: float
    learns: bool = True


@dataclass(frozen=True)
class ScoreMap:
    """A map of class scores before upsampling.

    Args:
        tap (str): Where it is read.
        classes (int): The number of classes.
        each (int): The number of scores at a position.
    """

    tap: str
    classes: int
    each: int


@dataclass(frozen=True)
class QueryForm:
    """The queries that a decoder can be asked with.

    Args:
        form (str): What a query is. Two decoders can be asked the same if this is the same.
        classes (int): The number of classes that it answers.
        answers (str): What it answers beside them, ``'boxes'`` or ``'masks'``. Defaults to
            ``'boxes'``.
    """

    form: str
    classes: int
    answers: str = 'boxes'


@dataclass(frozen=True)
class HeadForm:
    """The head of a one-stage detector, where an assigner finds what it learns from.

    Args:
        tap (str | list[str]): Where its scores and boxes are read.
        form (tuple): What they mean. Those of two heads of one form can be compared.
    """

    tap: str | list[str]
    form: tuple

    def __str__(self) -> str:
        taps = [self.tap] if isinstance(self.tap, str) else self.tap
        return 'scores and boxes at ' + ' and '.join(f"'{tap}'" for tap in taps)


@dataclass(frozen=True)
class Look:
    """What a model shows of a made-up image.

    Args:
        scores (ScoreMap, optional): Its class scores. Defaults to None: no map of them was found.
        features (Level, optional): The last map before the classifier. Defaults to None.
        neck (tuple[Level, ...]): The levels of its neck. Defaults to ``()``.
        backbone (tuple[Level, ...]): Those of its backbone. Defaults to ``()``.
        classes (tuple[str, ...], optional): The names of its classes. Defaults to None.
        queries (QueryForm, optional): The queries of its decoder. Defaults to None: it cannot be
            asked.
        rois (tuple[ScoreMap, ...]): The class scores of its RoI head, stage by stage. Defaults to
            ``()``: it has none that can be compared.
        head (HeadForm, optional): The head of a one-stage detector. Defaults to None.
        stacked (tuple[str, ...]): Modules that give several maps for each image, one behind the
            other, as TridentNet's branches do. Defaults to ``()``.
        stages (tuple[Level, ...]): The stages inside its backbone that give one map for each image.
            Defaults to ``()``.
    """

    scores: ScoreMap | None = None
    features: Level | None = None
    neck: tuple[Level, ...] = ()
    backbone: tuple[Level, ...] = ()
    classes: Names | None = None
    queries: QueryForm | None = None
    rois: tuple[ScoreMap, ...] = ()
    head: HeadForm | None = None
    stacked: tuple[str, ...] = ()
    stages: tuple[Level, ...] = ()

    def __str__(self) -> str:
        found = [
            self.scores and f"class scores at '{self.scores.tap}'",
            self.features and f"features at '{self.features.tap}'",
            *(
                f"{len(getattr(self, root))} maps at '{root}'"
                for root in ROOTS
                if getattr(self, root)
            ),
            self.queries and f'queries that are {self.queries.form}',
            self.rois and f"class scores of RoIs at '{self.rois[0].tap}'",
            self.head and str(self.head),
            *(f"several maps for each image at '{root}'" for root in self.stacked),
        ]
        return ', '.join(filter(None, found)) or 'no maps that were recognised'


def look_at_student(model: nn.Module, classes: Names | None, device: torch.device) -> Look:
    """Runs a copy of a student's training forward and says what it shows.

    Args:
        model (nn.Module): The student.
        classes (tuple[str, ...], optional): The names of its classes, if they are known.
        device (torch.device): The device for the trial.

    Raises:
        ValueError: If it does not run on a made-up image.
    """
    with random_state_kept():
        model = _without_dropout(copy.deepcopy(model))
        ran = dry_run_student(model, [], device)
        try:
            run = dry_run_student(model, _candidates(model, ran), device)
        except ValueError:  # a head that gives class scores in a form of its own
            run = dry_run_student(model, _levels_of(model, ran), device)
        look = _look(model, run, classes)
        asked = trial_copy(model, device)
        queries = _query_form(asked, device, lambda *given: asked(*given, mode='loss'))
        look = replace(look, queries=queries)
        return _with_gradients(look, _learning(model, look, run, device))


def look_at_teacher(
    model: nn.Module, classes: Names | None, device: torch.device, like: nn.Module
) -> Look:
    """Runs a teacher as the distillation will and says what it shows.

    Args:
        model (nn.Module): The teacher, which is put into eval mode.
        classes (tuple[str, ...], optional): The names of its classes, if they are known.
        device (torch.device): The device for the trial. The model is moved there and back.
        like (nn.Module): The student's data preprocessor, which knows the size of crops.

    Raises:
        ValueError: If it does not run on a made-up image.
    """
    home = next(model.parameters()).device
    model.eval().to(device)
    try:
        with random_state_kept():
            named = [SCORES] if _has(model, SCORES) else []
            whole = heads_of(model, named, 'the teacher')
            for heads in (whole, []) if whole else (whole,):  # one that cannot be called alone
                run = _try_teacher(model, heads, device, like)
                if run.problem is None:
                    queries = _query_form(model, device, lambda *given: _to_decoder(model, *given))
                    return replace(_look(model, run, classes), queries=queries)
    finally:
        model.to(home)
    raise ValueError(f'the teacher could not be tried on a made-up image: {run.problem}')


def _try_teacher(
    model: nn.Module, heads: list[str] | None, device: torch.device, like: nn.Module
) -> DryRun:
    """Runs the features of a model and some heads; ``problem`` is set if no size of image works."""
    problem = None
    for side in dict.fromkeys(
        (*EXAMPLE_SIZES, *crop_size(like), *crop_size(model.data_preprocessor))
    ):
        inputs, samples = example_batch(model, device, side)

        def forward(inputs: Tensor = inputs, samples: list | None = samples) -> None:
            dense_forward(model, inputs, samples, heads)

        try:
            ran = read_once(model, [], forward)
            run = read_once(model, _candidates(model, ran), forward)
        except Exception as error:  # a model may raise anything
            problem = problem or first_line(error)
        else:
            return replace(run, size=side)
    return DryRun(problem=problem)


def _without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, DROPOUT):
            module.p = 0.0
    return model


def _candidates(model: nn.Module, run: DryRun) -> list[Tap]:
    """The places to read: levels, class scores, and the map that they are made of."""
    return [*_levels_of(model, run), *(tap for tap in (SCORES, TAKEN) if _has(model, tap, run))]


def _levels_of(model: nn.Module, run: DryRun) -> list[Tap]:
    return [Tap(name) for name in (*ROOTS, *_stages_of(model)) if name in run.maps]


def _stages_of(model: nn.Module) -> list[str]:
    """The parts of a backbone that have parts themselves, as stages do."""
    children = getattr(model, STAGED, nn.Module()).named_children()
    return [f'{STAGED}.{name}' for name, child in children if next(child.children(), None)]


def _has(model: nn.Module, tap: Tap, run: DryRun | None = None) -> bool:
    """Whether a model has class scores of each position, or has run the module that takes them."""
    try:
        (place,) = places_of(model, tap)
    except ValueError:
        return False
    return run is None or place.where == CLASS_SCORES or place.path in run.ran


def _look(model: nn.Module, run: DryRun, classes: Names | None) -> Look:
    scores = _scores(run)
    taken, head = run.values.get(TAKEN), head_form(model)
    stacked = tuple(root for root in ROOTS if _is_stacked(run.values.get(Tap(root))))
    found = (_levels(run, name) for name in _stages_of(model))
    stages = tuple(levels[0] for levels in found if len(levels) == 1)
    if stacked:  # so its heads see other images than the teacher's
        return Look(scores, classes=classes, stacked=stacked, stages=stages)
    return Look(
        scores,
        None if scores is None or taken is None else _level(str(TAKEN), taken, run.size),
        *(_levels(run, root) for root in ROOTS),
        classes,
        rois=tuple(ScoreMap(tap, count, count + 1) for tap, count in score_taps(model).items()),
        head=head and HeadForm(*head),
        stages=stages,
    )


def _to_decoder(model: nn.Module, inputs: Tensor, samples: list | None) -> None:
    """Runs a teacher up to its decoder, as the distillation will."""
    heads = heads_of(model, [Tap.parse(BEFORE_DECODER)], 'the teacher')
    dense_forward(model, inputs, samples, heads)


@torch.no_grad()
def _query_form(
    model: nn.Module, device: torch.device, forward: Callable[[Tensor, list | None], object]
) -> QueryForm | None:
    """What the decoder of a model can be asked with, None if it cannot be."""
    for side in EXAMPLE_SIZES if has_decoder(model) else ():
        inputs, samples = example_batch(model, device, side)
        try:
            with decoder_watched(model, 'the model', stop=True) as asked:
                forward(inputs, samples)
            return QueryForm(asked.kind.form, asked.kind.classes, asked.kind.answers)
        except Exception:  # no such queries, or more of them than positions
            continue
    return None


def _is_stacked(value: Maps | None) -> bool:
    """Whether there are more maps than images: branches that lie along the batch."""
    return value is not None and any(x.shape[0] != 1 for x in as_list(value))


def _levels(run: DryRun, root: str) -> tuple[Level, ...]:
    value = run.values.get(Tap(root))
    if value is None or run.calls[Tap(root)] != 1 or _is_stacked(value):
        return ()
    if isinstance(value, Tensor):
        return (_level(root, value, run.size),)
    return tuple(_level(f'{root}[{i}]', x, run.size) for i, x in enumerate(as_list(value)))


def _level(tap: str, x: Tensor, size: int) -> Level:
    return Level(tap, x.shape[1], size / x.shape[2])


def _scores(run: DryRun) -> ScoreMap | None:
    """The class scores, unless other values lie among them."""
    (kind,) = run.scores.get(SCORES, (None,))
    value = run.values.get(SCORES)
    if kind is None or kind.dim != 1 or kind.each != value.shape[1] or _is_stacked(value):
        return None
    return ScoreMap(str(SCORES), kind.classes, kind.each)


def _learning(
    model: nn.Module, look: Look, run: DryRun, device: torch.device
) -> dict[str, bool] | None:
    """Which levels the task loss depends on, by their tap; None if it could not be tried."""
    levels = {root: getattr(look, root) for root in ROOTS if getattr(look, root)}
    if look.features is not None:
        levels[look.features.tap] = (look.features,)
    if look.stacked:
        levels |= {stage.tap: (stage,) for stage in look.stages}
    taps = [Tap.parse(text) for text in levels]
    if not taps or run.problem is not None:
        return None
    copied = trial_copy(model, device, run.initialised)
    masks = bool(run.samples) and 'masks' in getattr(run.samples[0], 'gt_instances', {})
    inputs, samples = example_batch(copied, device, run.size, masks)
    reader = TapReader(copied, taps, clone=frozenset(taps))
    try:
        with torch.enable_grad(), reader:
            loss, _ = copied.parse_losses(copied(inputs, samples, mode='loss'))
        maps = [x for tap in taps for x in as_list(reader.read(tap))]
        asked = [x for x in maps if x.requires_grad]
        slopes = iter(gradients_of(loss, asked) if asked else ())
    except Exception:  # the Distiller says later what is wrong
        return None
    each = [level.tap for group in levels.values() for level in group]
    return {tap: x.requires_grad and next(slopes) is not None for tap, x in zip(each, maps)}


def _with_gradients(look: Look, learning: dict[str, bool] | None) -> Look:
    if learning is None:
        return look

    def told(levels: Iterable[Level]) -> Sequence[Level]:
        return tuple(replace(level, learns=learning[level.tap]) for level in levels)

    features = look.features and told([look.features])[0]
    groups = dict(neck=told(look.neck), backbone=told(look.backbone))
    if look.stacked:
        groups['stages'] = told(look.stages)
    return replace(look, features=features, **groups)
