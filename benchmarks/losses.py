"""``losses``: forward and backward of each loss against other forms of it and against its floor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import mmrazor
from benchmarks.cases import Case, Inputs, Loss
from benchmarks.measure import PeakBytes, Rounds, failed, synchronize, take_turns
from mmkd_plugin.terms.compiled import compiled

TEXTBOOK, RAZOR, EAGER, COMPILED, FLOOR = 'textbook', 'MMRazor', 'ours', 'ours, compiled', 'floor'
OURS = (EAGER, COMPILED)
COMPETITORS = (RAZOR, TEXTBOOK)
#: How far two forms of one formula may be apart in float32: of the value, and of the gradient.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Settings:
    """How losses are measured.

    Args:
        device (torch.device): Where.
        seconds (float): For each case, after compiling.
        compiled (bool): Whether to compile ours too.
        memory (int): Bytes; a form that would need more is not run.
        clock (Callable): What measures, one of :data:`benchmarks.measure.CLOCKS`.
    """

    device: torch.device
    seconds: float
    compiled: bool
    memory: int
    clock: Callable[[], float] = time.perf_counter


def measure(case: Case, settings: Settings) -> Rounds:
    """Measures the forms of one case in turns, after checking that they agree."""
    torch.compiler.reset()
    found = Rounds(case.name, f'{case.where} {case.size}')
    inputs = case.inputs(settings.device)
    forms = forms_of(case, settings, found)
    calls, reference = {}, None
    for name in (EAGER, *(name for name in forms if name != EAGER)):
        try:
            start = time.perf_counter()
            result = value_and_gradients(forms[name], inputs)
            synchronize(settings.device)
            took = time.perf_counter() - start
        except Exception as error:
            if name == EAGER:
                raise
            found.notes[name] = failed(error)
            continue
        if name == COMPILED:
            found.extra['compile seconds'] = took
        reference = result if name == EAGER else reference
        apart = difference(result, reference)
        if apart > TOLERANCE:
            found.notes[name] = f'not timed: differs from ours by {apart:.2g}'
            continue
        calls[name] = lambda name=name: inputs.call(forms[name])
    del reference, result
    calls[FLOOR] = one_pass(inputs)
    measured = take_turns(calls, settings.device, settings.seconds, settings.clock)
    scale = traffic(inputs) / (2 * bytes_of(inputs.students))
    measured[FLOOR] = [seconds * scale for seconds in measured[FLOOR]]
    found.seconds = {name: measured[name] for name in (*forms, FLOOR) if name in measured}
    return found


def forms_of(case: Case, settings: Settings, found: Rounds) -> dict[str, Loss]:
    """The forms that can be run, by name; why others cannot goes into the notes."""
    forms: dict[str, Loss] = {TEXTBOOK: case.textbook(settings.device)}
    if case.razor is not None:
        try:
            forms[RAZOR] = case.razor()
        except mmrazor.NotInstalled as error:
            found.notes[RAZOR] = str(error)
    forms[EAGER] = case.ours(settings.device)
    for name in list(forms):
        needed = predicted_peak(case, forms[name])
        if needed is not None and needed > settings.memory:
            found.notes[name] = (
                f'not run: needs {needed / 2**30:.1f} GiB, allowed are '
                f'{settings.memory / 2**30:.1f}'
            )
            del forms[name]
    if settings.compiled:
        forms[COMPILED] = compiled(case.ours(settings.device))
    return forms


def value_and_gradients(loss: Loss, inputs: Inputs) -> list[Tensor]:
    """The value of a loss, and its gradient with respect to each of the student's maps."""
    value = loss(inputs.student, inputs.teacher, *inputs.others)
    return [value.detach(), *torch.autograd.grad(value, inputs.students)]


def difference(result: list[Tensor], reference: list[Tensor]) -> float:
    """The largest relative difference of value and gradients, in the L2 norm."""
    gaps = []
    for a, b in zip(result, reference):
        size = torch.linalg.vector_norm(b)
        gaps.append((torch.linalg.vector_norm(a - b) / size.clamp(min=1e-30)).item())
    return max(gaps)


def predicted_peak(case: Case, loss: Loss) -> int | None:
    """Bytes that a call will need beside its inputs; None if it cannot be told without running."""
    inputs = case.inputs('meta')
    try:
        with PeakBytes() as counter:
            inputs.call(loss)
    except (NotImplementedError, RuntimeError):  # what it does depends on the values
        return None
    return counter.peak


def bytes_of(values: Sequence[Any]) -> int:
    return sum(x.numel() * x.element_size() for x in values if isinstance(x, Tensor))


def traffic(inputs: Inputs) -> int:
    """Bytes of one read of the inputs and one write of the gradients."""
    teachers = [inputs.teacher] if isinstance(inputs.teacher, Tensor) else inputs.teacher
    return 2 * bytes_of(inputs.students) + bytes_of(teachers) + bytes_of(inputs.others)


def one_pass(inputs: Inputs) -> Callable[[], Any]:
    """Copies the student's maps into memory that is there already."""
    sources = [x.detach() for x in inputs.students]
    targets = [torch.empty_like(x) for x in sources]

    def copy() -> None:
        for source, target in zip(sources, targets):
            target.copy_(source)

    copy()
    return copy


@contextmanager
def compiling_anew() -> Iterator[None]:
    """Without the caches on disk, so that the time to compile is that of a first run."""
    import torch._inductor.config as config

    before = getattr(config, 'force_disable_caches', None)
    if before is None:  # an old torch, which keeps nothing on disk unless it is told to
        yield
        return
    config.force_disable_caches = True
    try:
        yield
    finally:
        config.force_disable_caches = before
