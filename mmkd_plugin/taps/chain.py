"""Chain: the modules that a model runs one after the other between two places."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmkd_plugin.taps.classifiers import CLASS_SCORES
from mmkd_plugin.taps.tap import Tap, Taps, find_module, flatten, map_tensors

#: The names of the modules that lead from one map to another one, in the order of the run.
Chain = tuple[str, ...]

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

    def between(self, start: _Mark, end: _Mark) -> Chain | None:
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
        list[tuple[str, ...]]: Names of modules for each map.

    Raises:
        ValueError: If the places have different numbers of maps, or one does not lead to the other
            by modules alone.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
        >>> taps = Taps.parse('0'), Taps.parse('2')
        >>> chains_between(model, *taps, lambda: model(torch.rand(1, 3, 4, 4)), {}, 'the model')
        [('1', '2')]
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
    if len(starts) != len(ends):
        raise ValueError(
            f'{owner} has {len(starts)} maps at {_quoted(start)} and {len(ends)} at '
            f'{_quoted(end)}; let as many maps go in as come out'
        )
    chains = []
    for first, last in zip(starts, ends):
        chain = calls.between(first, last)
        if chain is None:
            raise ValueError(_no_way(start, end, owner))
        chains.append(chain)
    return chains


def run_chain(model: nn.Module, chain: Chain, x: Tensor) -> Tensor:
    """Runs modules of a model one after the other on a map.

    Args:
        model (nn.Module): The model.
        chain (tuple[str, ...]): Names of its modules.
        x (Tensor): The map, ``(N, C, H, W)``. An activation in place overwrites it.

    Returns:
        Tensor: The map behind the last module.
    """
    for name in chain:
        x = find_module(model, Tap(name), 'the model')(x)
    return x


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
        chains (Sequence[tuple[str, ...]]): A chain for each map.
        begin (Sequence[Tensor]): The model's maps where the chains begin.
        arrive (Sequence[Tensor]): Its maps where they end.
        start (Taps): Where they begin, for the error.
        end (Taps): Where they end, for the error.
        owner (str): Name of the model in the error.

    Raises:
        ValueError: If a chain does not lead from its map to the other one.
    """
    for chain, first, last in zip(chains, begin, arrive):
        with torch.no_grad():
            found = run_chain(model, chain, first.clone())
        close = found.shape == last.shape and torch.allclose(
            found, last, rtol=CLOSE, atol=CLOSE * last.abs().max().item()
        )
        if not close:
            raise ValueError(_no_way(start, end, owner))


def names_in(chains: Sequence[Chain]) -> list[str]:
    """The modules of some chains, each once."""
    return list(dict.fromkeys(name for chain in chains for name in chain))
