"""Dry run: one small forward at build time shows which modules run and which maps taps read."""

from __future__ import annotations

import copy
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmkd_plugin.taps.class_scores import ClassScores, class_scores, heads_watched
from mmkd_plugin.taps.example import EXAMPLE_SIZES, crop_size, example_batch, library_of
from mmkd_plugin.taps.reader import TapError, TapReader
from mmkd_plugin.taps.tap import Maps, Tap, find_module, flatten, places_of
from mmkd_plugin.words import first_line

RELUS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU)

#: A weight whose values are all smaller makes a trial divide by zero, where a model normalises.
TINY = 1e-12

NORMS = (nn.modules.batchnorm._BatchNorm,)


class UntriedError(ValueError):
    """A model that does not run on a made-up image.

    Args:
        said (str): What it did not do.
        advice (str): What is told if nothing in its config looks wrong. Defaults to ``''``.

    Attributes:
        said (str): The message without the advice.
        advice (str): The advice.
    """

    def __init__(self, said: str, advice: str = '') -> None:
        super().__init__(f'{said}{advice}')
        self.said, self.advice = said, advice


def advice_alone(does: str, do: str) -> str:
    """The advice to look at a model alone.

    Args:
        does (str): What is expected of it, such as ``'trains'``.
        do (str): What the user does to see it, such as ``'train'``.

    Returns:
        str: A clause that begins with ``'; '``.
    """
    return (
        f'; expected a model that {does} by itself: {do} it without distillation first, and look '
        'at lists whose lengths belong together, such as `in_channels`'
    )


@dataclass(frozen=True)
class DryRun:
    """Results of a dry forward.

    Args:
        values (dict[Tap, Maps]): The maps at each tap, on the CPU. Defaults to ``{}``.
        calls (dict[Tap, int]): How often each place ran; for a ``@pre_relu`` tap 1 if it was read,
            else 0. Defaults to ``{}``.
        in_place (frozenset[Tap]): Places whose tensor was overwritten later in the forward.
            Defaults to ``frozenset()``.
        places (dict[Tap, tuple[Tap, ...]]): The inputs of ReLUs at which ``@pre_relu`` taps are
            read, and the modules that give class scores. Defaults to ``{}``.
        norms (dict[Tap, list[str]]): Name of the batch norm that feeds each map of a tap, ``''`` if
            none was found. Defaults to ``{}``.
        scores (dict[Tap, tuple]): Position of class scores in each map of a tap, None for other
            maps. Defaults to ``{}``.
        ran (list[str]): Names of all modules that ran, in the order in which they finished.
            Defaults to ``[]``.
        maps (dict[str, int]): How many maps ``(N, C, H, W)`` the modules gave that gave nothing
            else, in that order. Defaults to ``{}``.
        size (int): Height and width of the image, pixels. Defaults to 128.
        channels (int, optional): Channels of the image. Defaults to None: nothing ran.
        samples (list, optional): The made-up data samples. Defaults to None.
        initialised (bool): Whether the model ran with weights that it had initialised, because it
            did not run with those from its constructor. Defaults to False.
        problem (str, optional): The error of a forward that did not work. Defaults to None: there
            was none.
    """

    values: dict[Tap, Maps] = field(default_factory=dict)
    calls: dict[Tap, int] = field(default_factory=dict)
    in_place: frozenset[Tap] = frozenset()
    places: dict[Tap, tuple[Tap, ...]] = field(default_factory=dict)
    norms: dict[Tap, list[str]] = field(default_factory=dict)
    scores: dict[Tap, tuple[ClassScores | None, ...]] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    maps: dict[str, int] = field(default_factory=dict)
    size: int = EXAMPLE_SIZES[0]
    channels: int | None = None
    samples: list | None = None
    initialised: bool = False
    problem: str | None = None

    def without_maps(self) -> DryRun:
        """Returns a copy without the maps and the data samples, which take memory."""
        return replace(self, values={}, samples=None)


def dry_run_student(student: nn.Module, taps: Sequence[Tap], device: torch.device) -> DryRun:
    """Runs a student's loss once on a made-up image with one made-up label.

    A copy of the student runs, without gradients, so the student keeps its buffers, counters and
    training flags. The copy runs as in training, except that its batch norms are in eval mode: they
    cannot normalise a single value. If the model does not take the made-up labels, its
    ``mode='tensor'`` forward is tried instead.

    Args:
        student (nn.Module): The model.
        taps (Sequence[Tap]): The taps to read.
        device (torch.device): The device for the trial.

    Returns:
        DryRun: The results. ``problem`` is set if only the ``mode='tensor'`` forward ran.

    Raises:
        UntriedError: If the student does not run on a made-up image.
        ValueError: If a tap names a module that the student does not have or does not run.
    """
    for tap in taps:
        find_module(student, tap, 'the student')
    model = trial_copy(student, device)
    run = first_that_works(model, taps, device, 'loss', 'the student')
    if run.problem is not None:
        run = _initialised_run(student, taps, device) or run
    if run.problem is not None:
        problem = run.problem
        run = first_that_works(model, taps, device, 'tensor', 'the student')
        if run.problem is not None:
            raise UntriedError(
                'the student could not be tried on a made-up image, neither its training forward '
                f"({problem}) nor its forward in mode='tensor' ({run.problem})",
                advice_alone('trains', 'train'),
            )
        run = replace(run, problem=problem)
    check_ran(student, run, taps, 'the student')
    return run


def _initialised_run(
    student: nn.Module, taps: Sequence[Tap], device: torch.device
) -> DryRun | None:
    """Runs a copy with initialised weights; None if that does not work either.

    Boxes that a model learns, such as those of Sparse R-CNN, are boxes only then.
    """
    try:
        model = trial_copy(student, device, initialised=True)
    except Exception:  # a model may raise anything
        return None
    run = first_that_works(model, taps, device, 'loss', 'the student')
    return None if run.problem is not None else replace(run, initialised=True)


def trial_copy(student: nn.Module, device: torch.device, initialised: bool = False) -> nn.Module:
    """Copies a student for a trial before its weights are initialised.

    Args:
        student (nn.Module): The model.
        device (torch.device): The device of the copy.
        initialised (bool): Whether the copy initialises its weights, without the files that it may
            start from. Defaults to False.

    Returns:
        nn.Module: The copy, in training mode except for its batch norms, with finite weights.
    """
    model = copy.deepcopy(student)
    if initialised:
        _initialise(model)
    model.to(device)  # a model may override these, and return nothing
    model.train()
    for module in model.modules():
        if isinstance(module, NORMS):
            module.eval()
    with torch.no_grad():  # until `init_weights` some parameters hold arbitrary memory
        for parameter in model.parameters():
            parameter.nan_to_num_(0, 0, 0).clamp_(-10, 10)
            if parameter.ndim > 1 and not (parameter.abs() >= TINY).any():
                # its output has no direction
                parameter.normal_(std=0.02)
    return model


def _initialise(model: nn.Module) -> None:
    """Lets a model initialise its weights; reads no file, and logs nothing."""
    for module in model.modules():
        start = getattr(module, 'init_cfg', None)
        if isinstance(start, dict) and start.get('type') == 'Pretrained':
            module.init_cfg = None
    model._dump_init_info = lambda *_: None  # a line for each parameter in the log of the run
    model.init_weights()


def first_that_works(
    model: nn.Module, taps: Sequence[Tap], device: torch.device, mode: str, owner: str
) -> DryRun:
    """Tries made-up images and labels of several kinds until the model takes one.

    Args:
        model (nn.Module): The model to run.
        taps (Sequence[Tap]): The taps to read.
        device (torch.device): The device of the model.
        mode (str): ``'loss'`` or ``'tensor'``.
        owner (str): Name of the model in the error.

    Returns:
        DryRun: The results of the first forward that works. If none does, a ``DryRun`` with
        ``problem`` alone: the error of the first try.

    Raises:
        TapError: If the module of a tap returns something that cannot be read.
    """
    problem = None
    for size in (*EXAMPLE_SIZES, *crop_size(model.data_preprocessor)):
        for masks in (True, False) if library_of(model) == 'mmdet' else (False,):
            try:
                inputs, samples = example_batch(model, device, size, masks)
                run = read_once(model, taps, lambda: model(inputs, samples, mode=mode))  # noqa: B023
            except TapError as error:
                raise TapError(f'{owner}: {error}') from None
            except Exception as error:  # a model may raise anything at made-up labels
                problem = problem or first_line(error)
            else:
                return replace(run, size=size, channels=inputs.shape[1], samples=samples)
    return DryRun(problem=problem)


def read_once(model: nn.Module, taps: Sequence[Tap], forward: Callable[[], Any]) -> DryRun:
    """Runs ``forward`` and reads the taps; ``@pre_relu`` taps need a second run before it.

    Args:
        model (nn.Module): The model that ``forward`` runs.
        taps (Sequence[Tap]): The taps to read.
        forward (Callable): Runs the model.

    Returns:
        DryRun: The results. ``values`` has no entry for a tap whose module did not run.

    Raises:
        TapError: If the module of a tap returns something that cannot be read.
    """
    ran: list[str] = []
    gave: dict[str, int] = {}
    norms: list[tuple[str, Any]] = []

    def note(name: str, module: nn.Module, _: Any, output: Any) -> None:
        ran.append(name)
        if count := _count_of_maps(output):
            gave[name] = count
        if isinstance(module, NORMS):
            norms.append((name, output))

    handles = [
        module.register_forward_hook(partial(note, name))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            places = _before_relu(model, taps, forward)
            places |= {tap: places_of(model, tap) for tap in taps if tap.named}
            del ran[:], norms[:]
            gave.clear()
            found = [tap for tap in taps if tap.where != 'pre_relu' or tap in places]
            with (
                TapReader(model, found, places=places) as reader,
                heads_watched(model, found) as given,
            ):
                forward()
    finally:
        for handle in handles:
            handle.remove()
    in_place = frozenset(tap for tap in reader.taps if reader.changed_in_place(tap))
    reader.forget_versions()
    values, fed_by, scores = {}, {}, {}
    for tap in found:
        if all(reader.calls(place) for place in places.get(tap, (tap,))):
            maps = reader.read(tap)
            around = places.get(tap, (tap,))[0]
            fed_by[tap] = [
                _norm_before(tensor, norms, around)
                for tensor in ([maps] if isinstance(maps, Tensor) else maps)
            ]
            scores[tap] = class_scores(model, tap, maps, given)
            values[tap] = _cpu(maps)
    return DryRun(
        values=values,
        calls={tap: reader.calls(tap) for tap in reader.taps}
        | {tap: int(tap in values) for tap in taps if tap not in reader.taps},
        in_place=in_place,
        places=places,
        norms=fed_by,
        scores=scores,
        ran=list(dict.fromkeys(ran)),
        maps=gave,
    )


def _count_of_maps(output: Any) -> int:
    """How many maps ``(N, C, H, W)`` can be tapped by number, 0 if there is something else too."""
    tensors = list(flatten(output))
    if not all(isinstance(x, Tensor) and x.ndim == 4 for x in tensors):
        return 0
    return len(output) if isinstance(output, (list, tuple)) else min(len(tensors), 1)


def maps_near(run: DryRun, tap: Tap) -> str:
    """Says which modules give maps in the part of a model that a tap lies in.

    Args:
        run (DryRun): The results of a forward of the model.
        tap (Tap): A tap that reads something else than maps.
    """
    root = tap.path.split('.')[0]
    inside = [name for name in run.maps if name.startswith(f'{root}.')]
    count = run.maps.get(root, 0)
    itself = f"'{root}' gives {count} maps: '{root}[0]' to '{root}[{count - 1}]'. "
    if inside:
        return (
            f'{itself if count > 1 else ""}'
            f"Inside '{root}' these give maps (N, C, H, W): {', '.join(_outermost(inside))}."
        )
    before = [name for name in run.maps if '.' not in name and name != root]
    text = f"Nothing inside '{root}' gives a map (N, C, H, W)"
    return f'{text}; tap what comes before it: {", ".join(before)}.' if before else f'{text}.'


def _before_relu(
    model: nn.Module, taps: Sequence[Tap], forward: Callable[[], Any]
) -> dict[Tap, tuple[Tap, ...]]:
    """Finds, for each ``@pre_relu`` tap, the call of a ReLU that returned the tapped output.

    In a residual stage this is the last call of the ReLU of the last block. A block calls its ReLU
    two or three times, mostly in place. So neither the module's name nor its output shows the map
    before the ReLU.
    """
    asked = [tap for tap in taps if tap.where == 'pre_relu']
    if not asked:
        return {}
    outputs: dict[str, Any] = {}
    relus: list[tuple[Tap, Tensor]] = []
    count: Counter[str] = Counter()

    def note_relu(name: str, _: nn.Module, __: Any, output: Tensor) -> None:
        relus.append((Tap(name, where='input', call=count[name]), output))
        count[name] += 1

    def note_output(name: str, _: nn.Module, __: Any, output: Any) -> None:
        outputs[name] = output

    wanted = {tap.path for tap in asked}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, RELUS):
            handles.append(module.register_forward_hook(partial(note_relu, name)))
        if name in wanted:
            handles.append(module.register_forward_hook(partial(note_output, name)))
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    places = {}
    for tap in asked:
        if tap.path not in outputs:
            continue
        value = outputs[tap.path]
        for position in tap.index:
            value = value[position]
        maps = [value] if isinstance(value, Tensor) else list(value)
        # an in-place ReLU behind a ReLU returns the same tensor: the last call counts
        places[tap] = tuple(
            next((place for place, output in reversed(relus) if output is tensor), None)
            for tensor in maps
        )
        if None in places[tap]:
            raise TapError(
                f"'{tap}': what '{tap.path}' gives does not come out of a ReLU (one that is a "
                'module), so there is no map before it. If it ends without one, as a neck does, '
                f"tap '{Tap(tap.path, tap.index)}'"
            )
    return places


def _norm_before(tensor: Tensor, norms: Sequence[tuple[str, Any]], place: Tap) -> str:
    """Finds the batch norm that returned a tensor, before a residual block added to it.

    A residual block adds in place, so its sum is the object that its last norm returned. If no norm
    returned this object, the last norm inside the tapped module with an output of the same shape
    is taken.
    """
    same = [name for name, output in norms if output is tensor]
    if same:
        return same[-1]
    around = place.path if place.where == 'output' else place.path.rpartition('.')[0]
    inside = [
        name
        for name, output in norms
        if name.startswith(f'{around}.')
        and output.shape == tensor.shape
        and not re.search(r'downsample|shortcut', name)
    ]
    return inside[-1] if inside else ''


def check_ran(model: nn.Module, run: DryRun, taps: Sequence[Tap], owner: str) -> None:
    """Refuses taps whose module did not run.

    Args:
        model (nn.Module): The model that ran.
        run (DryRun): The results of its forward.
        taps (Sequence[Tap]): The taps.
        owner (str): Name of the model in the error.

    Raises:
        ValueError: If the module of a tap did not run.
    """
    for tap in taps:
        if not run.calls[tap]:
            raise ValueError(never_ran(model, tap, run, owner))


def never_ran(model: nn.Module, tap: Tap, run: DryRun, owner: str) -> str:
    """Returns the message for a tap whose module exists but did not run."""
    tap = places_of(model, tap, owner)[0]
    forward = 'a training forward' if owner == 'the student' else 'a forward up to its scores'
    inside = [name for name in run.ran if name.startswith(f'{tap.path}.') and 'loss' not in name]
    message = f"{owner} has a module '{tap.path}', but nothing can be read there"
    if inside:
        message += (
            ': its parent calls its methods instead of the module itself, so it gives no output of '
            f'its own in {forward}. Inside it these run: {", ".join(_outermost(inside))}.'
        )
        if not set(_outermost(inside)) <= set(run.maps):
            message += f' {maps_near(run, tap)}'
    else:
        ran = [name for name in run.ran if '.' in name] or run.ran
        message += f', it never runs in {forward}. Among those that run: {_some(ran)}.'
    if run.problem:
        message += (
            ' (The training forward could not be tried with a made-up label, so this was seen in '
            f"mode='tensor'. What it said: {run.problem})"
        )
    return message


def _outermost(names: list[str]) -> list[str]:
    keep = [name for name in names if not any(name.startswith(f'{other}.') for other in names)]
    return keep[-8:][::-1]


def _some(names: list[str]) -> str:
    return ', '.join(names[-6:][::-1])


def _cpu(value: Maps) -> Maps:
    return value.cpu() if isinstance(value, Tensor) else [tensor.cpu() for tensor in value]
