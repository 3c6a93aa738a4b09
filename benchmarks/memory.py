"""``memory``: bytes that losses keep for backward, and the peak of a loss and of a step."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_flatten

from benchmarks import losses, steps
from benchmarks.cases import Case, Inputs, Loss
from benchmarks.losses import bytes_of
from benchmarks.measure import Footprint, Rounds, failed, synchronize
from mmkd_plugin.losses.numerics import one_pass


def of_loss(case: Case, settings: losses.Settings) -> Footprint:
    """What the forms of one case keep and allocate."""
    torch.compiler.reset()
    notes = Rounds('', '')
    inputs = case.inputs(settings.device)
    # the inputs, and one map like the student's; and the weights of its modules, if it has some
    allowed = losses.traffic(inputs) + bytes_of(list(case.ours().parameters()))
    found = Footprint(case.name, f'{case.where} {case.size}', allowed, notes=notes.notes)
    for name, form in losses.forms_of(case, settings, notes).items():
        try:
            found.saved[name] = saved_bytes(form, inputs)
            found.peak[name] = peak_bytes(lambda form=form: inputs.call(form), settings.device)
        except Exception as error:
            found.notes[name] = failed(error)
    return found


def of_step(pair: steps.Pair, device: torch.device, quick: bool = False) -> Footprint:
    """The peak of a step: weights, and the most that is allocated at once while it runs.

    ``allowed`` is what distillation may add: the teacher's weights, the maps at its taps, and the
    input and output of one of its layers, the one where they are largest.
    """
    bench = steps.set_up(pair, device, quick)
    (count, *sides) = pair.size(device, quick)
    batch = '×'.join(map(str, (count, 3, *sides)))
    found = Footprint(pair.title, batch, notes=bench.notes)
    student = weights(bench.models[steps.STUDENT])
    for variant in bench.models:
        bench.step(variant)  # the optimizer's state, and what is chosen on a first call
    for variant in bench.models:
        while_running = peak_bytes(lambda v=variant: bench.step(v), device)
        teacher = bench.teachers.get(variant)
        found.peak[variant] = student + (weights(teacher) if teacher else 0) + while_running
    teacher = bench.teachers[steps.ONLINE]
    found.parts = {
        'weights of the teacher': weights(teacher),
        'maps at its taps': bytes_of(bench.maps),
        'one of its layers': largest_layer(teacher, lambda: bench.step(steps.ONLINE)),
    }
    found.allowed = sum(found.parts.values())
    return found


class Box:
    """Holds what a graph keeps, as long as the graph lasts."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


def saved_bytes(loss: Loss, inputs: Inputs) -> int:
    """Bytes that a forward keeps for backward; each storage counts once, an input too."""
    boxes: WeakSet[Box] = WeakSet()

    def keep(x: Tensor) -> Box:
        box = Box(x)
        boxes.add(box)  # it goes with the graph that holds it, such as one inside of a forward
        return box

    with saved_tensors_hooks(keep, lambda box: box.x):
        value = loss(inputs.student, inputs.teacher, *inputs.others)
    kept = {StorageWeakRef(box.x.untyped_storage()): box.x for box in boxes}
    del value
    return sum(x.untyped_storage().nbytes() for x in kept.values())


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """The most bytes allocated at once during a call, beside those that were there before.

    On a GPU PyTorch counts them; on a CPU its profiler notes what is allocated and freed, also by
    compiled code. Memory that a library takes for itself past PyTorch does not count. One thread
    does all of it: of several, each holds a piece of a map at a time.
    """
    if device.type == 'cuda':
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    counted = patch.object(one_pass, 'HUGE', math.inf)  # large maps, which NumPy would hold
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with counted, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            call()
    finally:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'trace.json')
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding='utf-8'))['traceEvents']
    changes = sorted((e['ts'], e['args']['Bytes']) for e in events if e.get('name') == '[memory]')
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak


def weights(model: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return bytes_of([*model.parameters(), *model.buffers()])


def largest_layer(model: nn.Module, call: Callable[[], Any]) -> int:
    """The most bytes that input and output of one module without children have together."""
    sizes = [0]

    def measure(module: nn.Module, inputs: Any, output: Any) -> None:
        tensors = {id(x): x for x in tree_flatten((inputs, output))[0] if isinstance(x, Tensor)}
        sizes.append(bytes_of(list(tensors.values())))

    handles = [
        module.register_forward_hook(measure)
        for module in model.modules()
        if not list(module.children())
    ]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return max(sizes)
