"""Looks at a model on a made-up image: where it has class scores, features and levels."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mmkd_plugin.assigners.rois import score_taps
from mmkd_plugin.taps import Tap, TapReader, as_list, find_module
from mmkd_plugin.taps.dry_run import DryRun, dry_run_student, read_once, trial_copy
from mmkd_plugin.taps.example import EXAMPLE_SIZES, crop_size, example_batch, random_state_kept
from mmkd_plugin.taps.task_gradient import gradients_of
from mmkd_plugin.teachers.classes import Names
from mmkd_plugin.teachers.dense_forward import dense_forward
from mmkd_plugin.words import first_line

#: The module of a segmentor that gives class scores, or the list of them, whose last one does.
HEAD = 'decode_head'

DROPOUT = nn.modules.dropout._DropoutNd

#: The modules that give levels.
ROOTS = ('neck', 'backbone')


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
class Look:
    """What a model shows of a made-up image.

    Args:
        scores (ScoreMap, optional): Its class scores. Defaults to None: no map of them was found.
        features (Level, optional): The last map before the classifier. Defaults to None.
        neck (tuple[Level, ...]): The levels of its neck. Defaults to ``()``.
        backbone (tuple[Level, ...]): Those of its backbone. Defaults to ``()``.
        classes (tuple[str, ...], optional): The names of its classes. Defaults to None.
        rois (tuple[ScoreMap, ...]): The class scores of its RoI head, stage by stage. Defaults to
            ``()``: it has none that can be compared.
    """

    scores: ScoreMap | None = None
    features: Level | None = None
    neck: tuple[Level, ...] = ()
    backbone: tuple[Level, ...] = ()
    classes: Names | None = None
    rois: tuple[ScoreMap, ...] = ()

    def __str__(self) -> str:
        found = [
            self.scores and f"class scores at '{self.scores.tap}'",
            self.features and f"features at '{self.features.tap}'",
            *(
                f"{len(getattr(self, root))} maps at '{root}'"
                for root in ROOTS
                if getattr(self, root)
            ),
            self.rois and f"class scores of RoIs at '{self.rois[0].tap}'",
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
        run = dry_run_student(model, _candidates(model, ran), device)
        look = _look(model, run, classes)
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
            head = _head(model)
            for heads in ([head], []) if head else ([],):  # one that cannot be called alone
                run = _try_teacher(model, heads, device, like)
                if run.problem is None:
                    return _look(model, run, classes)
    finally:
        model.to(home)
    raise ValueError(f'the teacher could not be tried on a made-up image: {run.problem}')


def _head(model: nn.Module) -> str:
    """The name of the head that gives the class scores of a segmentor, ``''`` if there is none."""
    head = getattr(model, HEAD, None)
    if isinstance(head, nn.ModuleList):
        return f'{HEAD}.{len(head) - 1}'
    return HEAD if isinstance(head, nn.Module) else ''


def _try_teacher(
    model: nn.Module, heads: list[str], device: torch.device, like: nn.Module
) -> DryRun:
    """Runs the features of a model and some heads; ``problem`` is set if no size of image works."""
    called = heads if hasattr(model, 'extract_feat') else None  # None runs the whole model
    problem = None
    for side in dict.fromkeys(
        (*EXAMPLE_SIZES, *crop_size(like), *crop_size(model.data_preprocessor))
    ):
        inputs, samples = example_batch(model, device, side)

        def forward(inputs: Tensor = inputs, samples: list | None = samples) -> None:
            dense_forward(model, inputs, samples, called)

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
    """The places to read: levels, and all maps in the head that gives class scores."""
    taps = [Tap(root) for root in ROOTS if root in run.maps]
    head = _head(model)
    if head:
        inside = [name for name in run.maps if name.startswith(f'{head}.')]
        taps += [Tap(name) for name in inside]
        modules = dict(model.named_modules())
        own = getattr(modules[head], 'conv_seg', None)
        taps += [
            Tap(name, where='input')
            for name in inside
            if modules[name] is own or isinstance(modules[name], (nn.Conv2d, DROPOUT))
        ]
    return taps


def _look(model: nn.Module, run: DryRun, classes: Names | None) -> Look:
    scores = _scores(model, run)
    return Look(
        scores,
        None if scores is None else _features(model, run, scores.tap),
        *(_levels(run, root) for root in ROOTS),
        classes,
        tuple(ScoreMap(tap, count, count + 1) for tap, count in score_taps(model).items()),
    )


def _levels(run: DryRun, root: str) -> tuple[Level, ...]:
    value = run.values.get(Tap(root))
    if value is None or run.calls[Tap(root)] != 1:
        return ()
    if any(x.shape[0] != 1 for x in as_list(value)):  # several branches for each image
        return ()
    if isinstance(value, Tensor):
        return (_level(root, value, run.size),)
    return tuple(_level(f'{root}[{i}]', x, run.size) for i, x in enumerate(as_list(value)))


def _level(tap: str, x: Tensor, size: int) -> Level:
    return Level(tap, x.shape[1], size / x.shape[2])


def _scores(model: nn.Module, run: DryRun) -> ScoreMap | None:
    """The classifier: of the modules that give class scores, the head's own, else the last one."""
    found = []
    for order, name in enumerate(run.maps):
        tap = Tap(name)
        kinds = run.scores.get(tap, ())
        if name in ROOTS or run.calls.get(tap) != 1 or len(kinds) != 1:
            continue
        (kind,) = kinds
        if kind is not None and kind.dim == 1 and kind.each == run.values[tap].shape[1]:
            own = getattr(find_module(model, Tap(_head(model)), 'the model'), 'conv_seg', None)
            own = own is not None and own is find_module(model, tap, 'the model')
            found.append((own, order, ScoreMap(name, kind.classes, kind.each)))
    return max(found, key=lambda one: one[:2])[2] if found else None


def _features(model: nn.Module, run: DryRun, classifier: str) -> Level | None:
    """The map that the classifier takes, before dropout: the outermost module that gives it."""
    taken = _single(run, Tap(classifier, where='input'))
    if taken is None:
        return None
    giving = [
        (name.count('.'), -order, name)
        for order, name in enumerate(run.maps)
        if name not in (classifier, *ROOTS) and _equal(_single(run, Tap(name)), taken)
    ]
    modules = dict(model.named_modules())
    plain = [one for one in giving if not isinstance(modules[one[2]], DROPOUT)]
    if plain:
        return _level(min(plain)[2], taken, run.size)
    tap = Tap(min(giving)[2] if giving else classifier, where='input')
    return _level(str(tap), taken, run.size)


def _single(run: DryRun, tap: Tap) -> Tensor | None:
    """The map of a place that ran once and gave one."""
    value = run.values.get(tap)
    return value if isinstance(value, Tensor) and run.calls[tap] == 1 else None


def _equal(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.shape == other.shape and torch.equal(one, other)


def _learning(
    model: nn.Module, look: Look, run: DryRun, device: torch.device
) -> dict[str, bool] | None:
    """Which levels the task loss depends on, by their tap; None if it could not be tried."""
    levels = {root: getattr(look, root) for root in ROOTS if getattr(look, root)}
    if look.features is not None:
        levels[look.features.tap] = (look.features,)
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
    return replace(look, features=features, neck=told(look.neck), backbone=told(look.backbone))
