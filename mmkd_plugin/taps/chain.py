"""Chain: the modules that a model runs one after the other between two places."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmkd_plugin.taps.classifiers import CLASS_SCORES
from mmkd_plugin.taps.tap import Tap, Taps, find_module, flatten, map_tensors


class Chain(NamedTuple):
    """The modules that lead to a map, in the order of the run.

    Args:
        start (int): Number of the map that goes in, among those where the part begins.
        modules (tuple[str, ...]): Names of the modules.
    """

    start: int
    modules: tuple[str, ...]


#: How close modules of a model come to its own map, relative to the largest value.
CLOSE = 1e-3


@dataclass(frozen=True, eq=False)
class _Mark:
    """A tensor at a moment of a forward."""

    tensor: Tensor
    time: int


class _Call:
    """One run of a module: when it began and ended, and the tensor that went in and came out."""

    def __init__(self, name: str, began: int, taken: Any) -> None:
        self.name, self.began, self.taken = name, began, taken
        self.ended, self.gave = -1, None

    @property
    def links(self) -> bool:
        """Whether it takes one tensor and nothing else, and gives one."""
        return isinstance(self.taken, Tensor) and isinstance(self.gave, Tensor)


class _Calls:
    """All runs of all modules in one forward, with a clock that each of them moves on."""

    def __init__(self) -> None:
        self.all: list[_Call] = []
        self._open: list[_Call] = []
        self._now = 0

    def _tick(self) -> int:
        self._now += 1
        return self._now

    def before(self, name: str, _: nn.Module, args: tuple, kwargs: dict) -> None:
        given = args or tuple(kwargs.values())
        self._open.append(_Call(name, self._tick(), given[0] if len(given) == 1 else given))

    def after(self, _: nn.Module, __: tuple, output: Any) -> None:
        call = self._open.pop()
        call.ended, call.gave = self._tick(), output
        self.all.append(call)

    def marks(self, tap: Tap, places: Sequence[Tap]) -> list[_Mark]:
        """The tensors at a tap, as :class:`TapReader` reads them, with the time of each."""
        if tuple(places) != (tap,):
            return [mark for place in places for mark in self.marks(place, [place])]
        values = []
        for call in sorted((c for c in self.all if c.name == tap.path), key=lambda c: c.began):
            value, time = (
                (call.taken, call.began) if tap.where == 'input' else (call.gave, call.ended)
            )
            values.append(map_tensors(value, lambda x, time=time: _Mark(x, time)))
        if tap.call is not None:
            values = values[tap.call : tap.call + 1]
        value = values[0] if len(values) == 1 else values
        for position in tap.index:
            value = value[position]
        return list(flatten(value))

    def between(self, start: _Mark, end: _Mark) -> tuple[str, ...] | None:
        """The outermost modules from one mark to another one, None if they do not lead there."""
        names: list[str] = []
        current, now = end.tensor, end.time
        while True:
            makers = [
                call
                for call in self.all
                if call.gave is current
                and call.links
                and call.began >= start.time
                and call.ended <= now
            ]
            if not makers:  # an activation in place gives the tensor that it took
                return tuple(reversed(names)) if current is start.tensor and names else None
            call = max(makers, key=lambda c: c.ended)
            names.append(call.name)
            current, now = call.taken, call.began


def _no_way(start: Taps, end: Taps, owner: str) -> str:
    return (
        f'{owner}: no modules lead from {_quoted(start)} to {_quoted(end)}: either the one does '
        'not depend on the other, or something that is no module lies between them. Let the maps '
        'go in closer to the end, at the input or the output of a module'
    )


def _quoted(taps: Taps) -> str:
    return ', '.join(f"'{tap}'" for tap in taps)


def chains_between(
    model: nn.Module,
    start: Taps,
    end: Taps,
    forward: Callable[[], Any],
    places: Mapping[Tap, Sequence[Tap]],
    owner: str,
) -> list[Chain]:
    """Finds the modules between two places of a model, and tries them.

    Args:
        model (nn.Module): The model that ``forward`` runs, in eval mode.
        start (Taps): Where the maps go in.
        end (Taps): Where they come out.
        forward (Callable): Runs the model once.
        places (Mapping[Tap, Sequence[Tap]]): The inputs of ReLUs of ``@pre_relu`` taps.
        owner (str): Name of the model in the error.

    Returns:
        list[Chain]: One for each map where they end. Several may begin at one map.

    Raises:
        ValueError: If more maps go in than come out, or one does not lead to the other by modules
            alone.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
        >>> taps = Taps.parse('0'), Taps.parse('2')
        >>> chains_between(model, *taps, lambda: model(torch.rand(1, 3, 4, 4)), {}, 'the model')
        [Chain(start=0, modules=('1', '2'))]
    """
    calls, handles = _Calls(), []
    for name, module in model.named_modules():
        if name:
            handles += [
                module.register_forward_pre_hook(partial(calls.before, name), with_kwargs=True),
                module.register_forward_hook(calls.after),
            ]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    read = [place for tap in (*start, *end) for place in places.get(tap, (tap,))]
    if any(place.where == CLASS_SCORES for place in read):  # computed from what a head gives
        raise ValueError(_no_way(start, end, owner))
    starts, ends = (
        [mark for tap in taps for mark in calls.marks(tap, places.get(tap, (tap,)))]
        for taps in (start, end)
    )
    if len(starts) > len(ends):
        raise ValueError(
            f'{owner} has {len(starts)} maps at {_quoted(start)} and {len(ends)} at '
            f'{_quoted(end)}; let no more maps go in than come out'
        )
    chains = [_to(last, number, starts, calls) for number, last in enumerate(ends)]
    if None in chains or {chain.start for chain in chains} != set(range(len(starts))):
        raise ValueError(_no_way(start, end, owner))
    return chains


def _to(end: _Mark, number: int, starts: Sequence[_Mark], calls: _Calls) -> Chain | None:
    """The chain to a map: from that of the same number, or else from the first that leads there."""
    for at in sorted(range(len(starts)), key=lambda one: one != number):
        modules = calls.between(starts[at], end)
        if modules is not None:
            return Chain(at, modules)
    return None


def run_chains(model: nn.Module, chains: Sequence[Chain], maps: Sequence[Tensor]) -> list[Tensor]:
    """Runs modules of a model one after the other on maps; what chains share runs once.

    Args:
        model (nn.Module): The model.
        chains (Sequence[Chain]): The chains.
        maps (Sequence[Tensor]): The maps that go in, ``(N, C, H, W)``. An activation in place
            overwrites them.

    Returns:
        list[Tensor]: The map behind the last module of each chain.
    """
    made: dict[int, Tensor] = {}

    def run(x: Tensor, numbers: Sequence[int], depth: int) -> None:
        ways: dict[str | None, list[int]] = {}
        for number in numbers:
            names = chains[number].modules
            ways.setdefault(names[depth] if depth < len(names) else None, []).append(number)
        for name, those in ways.items():
            given = x if len(ways) == 1 else x.clone()
            if name is None:
                made.update(dict.fromkeys(those, given))
            else:
                run(find_module(model, Tap(name), 'the model')(given), those, depth + 1)

    for start, x in enumerate(maps):
        run(x, [i for i, chain in enumerate(chains) if chain.start == start], 0)
    return [made[number] for number in range(len(chains))]


def check_chains(
    model: nn.Module,
    chains: Sequence[Chain],
    begin: Sequence[Tensor],
    arrive: Sequence[Tensor],
    start: Taps,
    end: Taps,
    owner: str,
) -> None:
    """Refuses chains that give something else than the model does on its own maps.

    Args:
        model (nn.Module): The model.
        chains (Sequence[Chain]): A chain for each map where they end.
        begin (Sequence[Tensor]): The model's maps where the chains begin.
        arrive (Sequence[Tensor]): Its maps where they end.
        start (Taps): Where they begin, for the error.
        end (Taps): Where they end, for the error.
        owner (str): Name of the model in the error.

    Raises:
        ValueError: If a chain does not lead from its map to the other one.
    """
    with torch.no_grad():
        made = run_chains(model, chains, [x.clone() for x in begin])
    for found, last in zip(made, arrive):
        close = found.shape == last.shape and torch.allclose(
            found, last, rtol=CLOSE, atol=CLOSE * last.abs().max().item()
        )
        if not close:
            raise ValueError(_no_way(start, end, owner))


def names_in(chains: Sequence[Chain]) -> list[str]:
    """The modules of some chains, each once."""
    return list(dict.fromkeys(name for chain in chains for name in chain.modules))
