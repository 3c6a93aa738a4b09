"""TapReader: reads taps during one forward of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from mmkd_plugin.taps.classifiers import CLASS_SCORES, ForwardHook, map_of
from mmkd_plugin.taps.tap import (
    Maps,
    Tap,
    describe,
    find_module,
    flatten,
    map_tensors,
    places_of,
)
from mmkd_plugin.tracing import is_compiling


class TapError(ValueError):
    """The output of a module is not what a tap expects there."""


class _AllSeen(BaseException):
    """Ends a forward once every tap has been read; ``except Exception`` does not catch it."""


class TapReader:
    """Reads taps during one forward of a model, as a context manager.

    Hooks exist only inside the ``with`` block. So activation checkpointing, which runs modules
    again in the backward pass, adds nothing to the values.

    Args:
        model (nn.Module): The model to read.
        taps (Iterable[Tap]): The taps to read.
        clone (Collection[Tap]): Places whose tensor the model overwrites later in the forward, such
            as the output of a batch norm before an in-place ReLU. The model goes on with a copy.
            Defaults to ``()``.
        stop_after (Mapping[Tap, int], optional): How many times each place runs in one forward. If
            given, the forward ends as soon as all places have run so often. Defaults to None: the
            forward runs to its end.
        places (Mapping[Tap, Sequence[Tap]], optional): The inputs of ReLUs at which ``@pre_relu``
            taps are read, as :func:`mmkd_plugin.taps.dry_run.read_once` finds them. Defaults to
            None: there are no such taps. Class scores are found without.
        on_path (Collection[Tap]): Taps at which gradients of later outputs are needed. The model
            goes on with the tensor that was read there. A tensor without an autograd graph is
            replaced by a leaf. Defaults to ``()``.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from mmkd_plugin import Tap, TapReader
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU())
        >>> tap = Tap.parse('0')
        >>> with TapReader(model, [tap]) as reader:
        ...     _ = model(torch.rand(1, 3, 4, 4))
        >>> reader.read(tap).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Iterable[Tap],
        clone: Collection[Tap] = (),
        stop_after: Mapping[Tap, int] | None = None,
        places: Mapping[Tap, Sequence[Tap]] | None = None,
        on_path: Collection[Tap] = (),
    ) -> None:
        self.model = model
        known = places or {}
        self._places = {tap: tuple(known.get(tap) or places_of(model, tap)) for tap in taps}
        self.taps = list(dict.fromkeys(place for all_ in self._places.values() for place in all_))
        self.clone = clone
        self.on_path = {place for tap in on_path for place in self._places[tap]}
        self._missing = None
        if stop_after is not None:
            self._missing = {
                tap: stop_after[tap] if tap.call is None else tap.call + 1 for tap in self.taps
            }
        self._count: Counter[Tap] = Counter()
        self._values: dict[Tap, list[Any]] = {tap: [] for tap in self.taps}
        self._versions: dict[Tap, list[tuple[Tensor, int]]] = {tap: [] for tap in self.taps}
        self._handles: list = []

    def __enter__(self) -> TapReader:
        for tap in self.taps:
            module = find_module(self.model, tap, 'the model')
            if tap.where == 'input':
                hook = partial(self._before, tap)
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            elif tap.where == CLASS_SCORES:
                handle = ForwardHook(module, partial(self._scored, tap, module))
            else:
                handle = module.register_forward_hook(partial(self._after, tap))
            self._handles.append(handle)
        return self

    def __exit__(self, kind: type | None, *_: Any) -> bool:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        return kind is _AllSeen

    def _before(self, tap: Tap, _: nn.Module, args: tuple, kwargs: dict) -> Any:
        if tap in self.on_path:
            args, kwargs = map_tensors(args, _with_graph), map_tensors(kwargs, _with_graph)
        self._keep(tap, _only(args, kwargs))
        if tap in self.clone:
            return map_tensors(args, Tensor.clone), map_tensors(kwargs, Tensor.clone)
        return (args, kwargs) if tap in self.on_path else None

    def _after(self, tap: Tap, _: nn.Module, __: tuple, output: Any) -> Any:
        if tap in self.on_path:
            output = map_tensors(output, _with_graph)
        self._keep(tap, output)
        if tap in self.clone:
            return map_tensors(output, Tensor.clone)
        return output if tap in self.on_path else None

    def _scored(self, tap: Tap, module: nn.Module, output: Any) -> Any:
        """Keeps the class scores in what a head gives."""
        scores, output = map_of(output)
        if scores is None:
            raise TapError(
                f"the class scores of '{tap.path}' cannot be read: {type(module).__name__} gives "
                f'{describe(output)}; tap a module by its name'
            )
        self._keep(tap, scores)
        return map_tensors(output, Tensor.clone) if tap in self.clone else output

    def _keep(self, tap: Tap, value: Any) -> None:
        call = self._count[tap]
        self._count[tap] += 1
        if tap.call in (None, call):
            # A compiled graph writes otherwise than the model does, and gives what that gives.
            if not is_compiling():
                self._versions[tap] += [(tensor, tensor._version) for tensor in _tensors(value)]
            self._values[tap].append(value)
        if self._missing is not None:
            self._missing[tap] -= 1
            if all(count <= 0 for count in self._missing.values()):
                raise _AllSeen

    def calls(self, tap: Tap) -> int:
        """Returns how often a place has run.

        Args:
            tap (Tap): The place.

        Returns:
            int: Number of runs.
        """
        return self._count[tap]

    def changed_in_place(self, tap: Tap) -> bool:
        """Returns whether the tensor of a place was overwritten after it was read.

        Args:
            tap (Tap): The place.

        Returns:
            bool: True if one of its tensors has changed.
        """
        return any(tensor._version != version for tensor, version in self._versions[tap])

    def forget_versions(self) -> None:
        """Lets :meth:`read` return tensors that were overwritten; only their shapes are right."""
        self._versions = {tap: [] for tap in self.taps}

    def read(self, tap: Tap) -> Maps:
        """Returns the maps at a tap.

        Args:
            tap (Tap): One of the taps given to the constructor, or a place of one.

        Returns:
            Tensor | list[Tensor]: The maps, ``(N, C, H, W)`` for most modules.

        Raises:
            TapError: If the module did not run, has no such element, or returned something that is
                neither a tensor nor a sequence of tensors.
            RuntimeError: If the tensor was overwritten after it was read.
        """
        places = self._places.get(tap, (tap,))
        if places != (tap,):
            maps = [self.read(place) for place in places]
            return maps[0] if len(maps) == 1 else maps
        values = self._values[tap]
        if not values:
            raise TapError(f"tap '{tap}' did not run in this forward")
        if self.changed_in_place(tap):
            raise RuntimeError(
                f"what tap '{tap}' read was overwritten in place later in this forward, though not "
                'in the dry forward at build time'
            )
        value = values[0] if len(values) == 1 else values
        for position in tap.index:
            if not isinstance(value, Sequence) or not -len(value) <= position < len(value):
                kind = (
                    f'{len(value)} elements'
                    if isinstance(value, Sequence)
                    else f'one {describe(value)}'
                )
                raise TapError(f"tap '{tap}' has no element [{position}]: it gives {kind}")
            value = value[position]
        if isinstance(value, Tensor):
            return value
        tensors = list(flatten(value))
        if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
            element = f", or an element such as '{tap.path}[0]'" * isinstance(value, Sequence)
            raise TapError(
                f"tap '{tap}' gives {describe(value)}, not a tensor or a sequence of tensors; name "
                f'a module inside it{element}'
            )
        return tensors


def _only(args: tuple, kwargs: dict) -> Any:
    inputs = args or tuple(kwargs.values())
    return inputs[0] if len(inputs) == 1 else inputs


def _tensors(value: Any) -> Iterable[Tensor]:
    return (item for item in flatten(value) if isinstance(item, Tensor))


def _with_graph(tensor: Tensor) -> Tensor:
    """Returns a tensor that has gradients: the tensor itself, or a leaf with its values."""
    if tensor.requires_grad or not tensor.is_floating_point():
        return tensor
    return tensor.detach().requires_grad_()
