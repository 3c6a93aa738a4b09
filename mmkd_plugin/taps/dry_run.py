"""One small forward at build time: which modules run, and what the taps will see."""

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
from mmkd_plugin.taps.tap import Maps, Tap, find_module

RELUS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU)

NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True)
class DryRun:
    """What a dry forward showed.

    Args:
        values (dict[Tap, Maps]): What each tap read, on the CPU.
        calls (dict[Tap, int]): How often each place ran, and each tap's module.
        in_place (frozenset[Tap]): Places whose tensor was overwritten later in the forward.
        places (dict[Tap, tuple[Tap]]): Where the ``@pre_relu`` taps are read.
        norms (dict[Tap, list[str]]): The batch norm that feeds each map of a tap, ``''`` for none.
        scores (dict[Tap, tuple]): How class scores lie in each map of a tap, None for other maps.
        ran (list[str]): Names of all modules that ran, in the order in which they ended.
        size (int): Height and width of the image, pixels.
        samples (list, optional): The made-up data samples.
        problem (str, optional): Why the training forward could not be tried, if it could not.
    """

    values: dict[Tap, Maps] = field(default_factory=dict)
    calls: dict[Tap, int] = field(default_factory=dict)
    in_place: frozenset[Tap] = frozenset()
    places: dict[Tap, tuple[Tap, ...]] = field(default_factory=dict)
    norms: dict[Tap, list[str]] = field(default_factory=dict)
    scores: dict[Tap, tuple[ClassScores | None, ...]] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    size: int = EXAMPLE_SIZES[0]
    samples: list | None = None
    problem: str | None = None

    def without_maps(self) -> DryRun:
        """The same, without what takes memory: the maps and the data samples."""
        return replace(self, values={}, samples=None)


def dry_run_student(student: nn.Module, taps: Sequence[Tap], device: torch.device) -> DryRun:
    """Runs a student's loss once on a made-up image with one made-up label.

    A copy of the student runs, without gradients, so the student itself (its buffers, counters and
    training flags) stays as it was built. It runs as in training, but for the batch norms, which
    cannot normalise a single value. Where the made-up labels do not suit the model, its
    ``mode='tensor'`` forward is tried instead.

    Args:
        student (nn.Module): The model.
        taps (Sequence[Tap]): What to read.
        device (torch.device): Where to run.

    Raises:
        ValueError: If a tap names no module of the student, or one that does not run.
    """
    for tap in taps:
        find_module(student, tap, 'the student')
    model = trial_copy(student, device)
    run = first_that_works(model, taps, device, 'loss', 'the student')
    if run.problem is not None:
        problem = run.problem
        run = first_that_works(model, taps, device, 'tensor', 'the student')
        if run.problem is not None:
            raise ValueError(
                'the student could not be tried on a made-up image, neither its training forward '
                f"({problem}) nor its forward in mode='tensor' ({run.problem})"
            )
        run = replace(run, problem=problem)
    check_ran(student, run, taps, 'the student')
    return run


def trial_copy(student: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a student that has not been initialised yet, to be tried and thrown away.

    Args:
        student (nn.Module): The model.
        device (torch.device): Where the copy is to be.
    """
    model = copy.deepcopy(student).to(device).train()
    for module in model.modules():
        if isinstance(module, NORMS):
            module.eval()
    with torch.no_grad():  # some parameters are raw memory until `init_weights`, after the build
        for parameter in model.parameters():
            parameter.nan_to_num_(0, 0, 0).clamp_(-10, 10)
    return model


def first_that_works(
    model: nn.Module, taps: Sequence[Tap], device: torch.device, mode: str, owner: str
) -> DryRun:
    """Tries sizes and kinds of made-up labels; ``problem`` is set if none suits the model.

    Args:
        model (nn.Module): The model that runs.
        taps (Sequence[Tap]): What to read.
        device (torch.device): Where the model is.
        mode (str): ``'loss'`` or ``'tensor'``.
        owner (str): What the error calls the model.
    """
    problem = None
    for size in (*EXAMPLE_SIZES, *crop_size(model.data_preprocessor)):
        for masks in (True, False) if library_of(model) == 'mmdet' else (False,):
            try:
                inputs, samples = example_batch(model, device, size, masks)
                run = read_once(model, taps, lambda: model(inputs, samples, mode=mode))  # noqa: B023
            except TapError as error:
                raise TapError(f'{owner}: {error}') from None
            except Exception as error:  # whatever a foreign model makes of our labels
                problem = problem or f'{type(error).__name__}: {error}'
            else:
                return replace(run, size=size, samples=samples)
    return DryRun(problem=problem)


def read_once(model: nn.Module, taps: Sequence[Tap], forward: Callable[[], Any]) -> DryRun:
    """Runs ``forward`` once and notes what ran and what the taps saw.

    Args:
        model (nn.Module): The model that ``forward`` runs.
        taps (Sequence[Tap]): What to read; one that did not run is left out of ``values``.
        forward (Callable): Runs the model.
    """
    ran: list[str] = []
    norms: list[tuple[str, Any]] = []

    def note(name: str, module: nn.Module, _: Any, output: Any) -> None:
        ran.append(name)
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
            del ran[:], norms[:]
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
    )


def _before_relu(
    model: nn.Module, taps: Sequence[Tap], forward: Callable[[], Any]
) -> dict[Tap, tuple[Tap, ...]]:
    """Finds the call of a ReLU whose output is what a module gives, for each ``@pre_relu`` tap.

    In a residual stage this is the last ReLU of the last block, which runs two or three times in a
    block and mostly in place: neither its name nor its output shows what went into it.
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
        # the last one, for a ReLU behind a ReLU
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
    """The batch norm that gave a tensor, or gave what a residual block then added to.

    A residual block adds in place, so its sum is still the object that its last norm returned.
    Where it is not, the last norm around the tap that gave as many channels is taken.
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
        run (DryRun): What its forward showed.
        taps (Sequence[Tap]): The taps.
        owner (str): What the error calls the model.

    Raises:
        ValueError: If one of them did not run.
    """
    for tap in taps:
        if not run.calls[tap]:
            raise ValueError(never_ran(model, tap, run, owner))


def never_ran(model: nn.Module, tap: Tap, run: DryRun, owner: str) -> str:
    """The message for a tap whose module exists but did not run."""
    forward = 'a training forward' if owner == 'the student' else 'a forward up to its scores'
    inside = [name for name in run.ran if name.startswith(f'{tap.path}.') and 'loss' not in name]
    message = f"{owner} has a module '{tap.path}', but nothing can be read there"
    if inside:
        message += (
            ': its parent calls its methods instead of the module itself, so it gives no output of '
            f'its own in {forward}. Inside it these run: {", ".join(_outermost(inside))}.'
        )
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
