"""Taps: read a tensor at a named module while a model runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any, Callable, Union

from torch import Tensor, nn

Maps = Union[Tensor, list[Tensor]]

_FORM = re.compile(r'(?P<path>[\w.]+)(?P<index>(\[-?\d+\])*)(@(?P<where>input|output|pre_relu))?')


@dataclass(frozen=True)
class Tap:
    """A place in a model: a module, its input or its output, and an element of it.

    Args:
        path (str): Dotted name of a module, as in ``model.named_modules()``.
        index (tuple[int]): Elements to take one after the other, of a module that gives a sequence
            or runs several times in one forward. Defaults to ``()``, everything.
        where (str): ``'output'``, ``'input'``, or ``'pre_relu'``: what enters the ReLU whose output
            the module gives. Defaults to ``'output'``.
        call (int, optional): Which run of a module that runs several times in one forward, counted
            from 0; found by a dry forward, never typed. Defaults to None, all of them.

    Examples:
        >>> Tap.parse('neck[2]').index
        (2,)
        >>> str(Tap.parse('backbone.layer4@pre_relu'))
        'backbone.layer4@pre_relu'
    """

    path: str
    index: tuple[int, ...] = ()
    where: str = 'output'
    call: int | None = None

    @classmethod
    def parse(cls, text: str) -> Tap:
        """Reads ``'a.b'``, ``'a.b@input'``, ``'a.b@pre_relu'`` or ``'a.b[2]'``.

        Raises:
            ValueError: If the text has another form.
        """
        match = _FORM.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(
                f"{text!r} is not a tap: expected 'module.path', 'module.path@input', "
                "'module.path@pre_relu' or 'module.path[2]' (a child of a list is written "
                "'layers.0.conv')"
            )
        index = tuple(int(number) for number in re.findall(r'-?\d+', match['index']))
        return cls(match['path'], index, match['where'] or 'output')

    def __str__(self) -> str:
        index = ''.join(f'[{number}]' for number in self.index)
        return f'{self.path}{index}' + ('' if self.where == 'output' else f'@{self.where}')


@dataclass(frozen=True)
class Taps:
    """One tap, or several that are read as one list of maps.

    Args:
        taps (tuple[Tap]): The places, in the order of the maps.

    Examples:
        >>> str(Taps.parse(['backbone.layer3', 'neck']))
        'backbone.layer3, neck'
    """

    taps: tuple[Tap, ...]

    @classmethod
    def parse(cls, value: Any) -> Taps:
        """Reads the text of a tap, or a list of such texts.

        Raises:
            ValueError: If the list is empty or a text has another form.
        """
        texts = value if isinstance(value, (list, tuple)) else [value]
        if not texts:
            raise ValueError('a list of taps cannot be empty')
        return cls(tuple(Tap.parse(text) for text in texts))

    def __iter__(self) -> Iterator[Tap]:
        return iter(self.taps)

    def __str__(self) -> str:
        return ', '.join(map(str, self.taps))

    def of(self, values: Mapping[Tap, Maps]) -> Maps:
        """What these taps read: a tensor, or a list of tensors.

        Args:
            values (Mapping[Tap, Maps]): What each tap read.
        """
        if len(self.taps) == 1:
            return values[self.taps[0]]
        return [tensor for tap in self.taps for tensor in _flatten(values[tap])]


def find_module(model: nn.Module, tap: Tap, owner: str) -> nn.Module:
    """Returns the module that a tap names.

    Args:
        model (nn.Module): The model to look in.
        tap (Tap): What to look for.
        owner (str): What the error calls the model, such as ``'the student'``.

    Raises:
        ValueError: If there is no such module; names the closest ones and what the last part of
            the path that does exist contains.
    """
    module, known = model, []
    for part in tap.path.split('.'):
        child = dict(module.named_children()).get(part)
        if child is None:
            break
        module = child
        known.append(part)
    else:
        return module

    right = '.'.join(known)
    names = [name for name, _ in model.named_modules() if name and name != right]
    last = tap.path.rsplit('.', 1)[-1]
    close = get_close_matches(tap.path, names, n=3, cutoff=0.7)
    close += [name for name in names if name.rsplit('.', 1)[-1] == last and name not in close][:3]
    message = f"{owner} has no module '{tap.path}'."
    if close:
        message += f' Closest: {", ".join(close[:4])}.'
    children = ', '.join(name for name, _ in module.named_children())
    where = f"'{right}'" if right else owner
    raise ValueError(f'{message} {where} contains: {children or "no further modules"}.')


class TapError(ValueError):
    """A tap that cannot be read from what its module gave."""


class _AllSeen(BaseException):
    """Ends a forward once every tap has been read; no ``except Exception`` may swallow it."""


class TapReader:
    """Reads taps during one forward of a model; used as a context manager.

    Hooks exist only inside the ``with`` block, so a re-computation in the backward pass of a
    check-pointed module is not read a second time, and nothing is held once the reader is dropped.

    Args:
        model (nn.Module): The model that is going to run.
        taps (Iterable[Tap]): What to read.
        clone (Collection[Tap]): Places whose tensor is changed in place later in the forward (an
            in-place ReLU behind a batch norm, say) and which are copied for that reason.
        stop_after (Mapping[Tap, int], optional): How many times each place runs in one forward. If
            given, the forward ends as soon as all of them have.
        places (Mapping[Tap, Sequence[Tap]]): Where ``@pre_relu`` taps are read, as
            :func:`mmkd_plugin.dry_run.read_once` found it. Defaults to ``{}``.
        on_path (Collection[Tap]): Taps whose tensor the model has to go on with, so that the
            gradient of its loss with respect to it exists; one that has no graph yet becomes a
            leaf. Defaults to ``()``.

    Examples:
        >>> import torch
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
        self._places = {tap: tuple((places or {}).get(tap, (tap,))) for tap in taps}
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
            args, kwargs = _map_tensors(args, _with_graph), _map_tensors(kwargs, _with_graph)
        self._keep(tap, _only(args, kwargs))
        if tap not in self.on_path:
            return None
        return self._onward(tap, args), self._onward(tap, kwargs)

    def _after(self, tap: Tap, _: nn.Module, __: tuple, output: Any) -> Any:
        if tap not in self.on_path:
            return self._keep(tap, output)
        output = _map_tensors(output, _with_graph)
        self._keep(tap, output)
        return self._onward(tap, output)

    def _onward(self, tap: Tap, value: Any) -> Any:
        """What the model goes on with where the tensor that was read is to be on its path."""
        return _map_tensors(value, Tensor.clone) if tap in self.clone else value

    def _keep(self, tap: Tap, value: Any) -> None:
        call = self._count[tap]
        self._count[tap] += 1
        if tap.call in (None, call):
            if tap in self.clone and tap not in self.on_path:
                value = _map_tensors(value, Tensor.clone)
            else:
                self._versions[tap] += [(tensor, tensor._version) for tensor in _tensors(value)]
            self._values[tap].append(value)
        if self._missing is not None:
            self._missing[tap] -= 1
            if all(count <= 0 for count in self._missing.values()):
                raise _AllSeen

    def calls(self, tap: Tap) -> int:
        """How often a place has run."""
        return self._count[tap]

    def changed_in_place(self, tap: Tap) -> bool:
        """Whether something wrote into the tensor of a place after it was read."""
        return any(tensor._version != version for tensor, version in self._versions[tap])

    def forget_versions(self) -> None:
        """Lets :meth:`read` return tensors that were overwritten; for their shapes only."""
        self._versions = {tap: [] for tap in self.taps}

    def read(self, tap: Tap) -> Maps:
        """What the tap saw: a tensor, or a list of tensors.

        Raises:
            TapError: If the module did not run, has no such element, or gives something that is
                neither a tensor nor a sequence of tensors.
            RuntimeError: If the tensor was changed in place since.
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
        tensors = list(_flatten(value))
        if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
            raise TapError(
                f"tap '{tap}' gives {describe(value)}, not a tensor or a sequence of tensors; name "
                'a module inside it, or an element such as '
                f"'{tap.path}[0]'"
            )
        return tensors


def as_list(maps: Maps) -> list[Tensor]:
    """One map or several as a list."""
    return [maps] if isinstance(maps, Tensor) else list(maps)


def describe(value: Any) -> str:
    """A value in a few words: shapes for tensors, the type otherwise.

    Examples:
        >>> import torch
        >>> describe([torch.rand(1, 8, 4, 4), None])
        'list of [tensor (1, 8, 4, 4), NoneType]'
    """
    if isinstance(value, Tensor):
        return f'tensor {tuple(value.shape)}'
    if isinstance(value, (list, tuple)):
        return f'{type(value).__name__} of [{", ".join(describe(item) for item in value)}]'
    return type(value).__name__


def _only(args: tuple, kwargs: dict) -> Any:
    inputs = args or tuple(kwargs.values())
    return inputs[0] if len(inputs) == 1 else inputs


def _flatten(value: Any) -> Iterable[Any]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _flatten(item)
    else:
        yield value


def _tensors(value: Any) -> Iterable[Tensor]:
    return (item for item in _flatten(value) if isinstance(item, Tensor))


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, (list, tuple)):
        items = [_map_tensors(item, function) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, dict):
        return {key: _map_tensors(item, function) for key, item in value.items()}
    return function(value) if isinstance(value, Tensor) else value


def _with_graph(tensor: Tensor) -> Tensor:
    """A tensor that gradients can be asked for: itself, or a leaf of its values."""
    if tensor.requires_grad or not tensor.is_floating_point():
        return tensor
    return tensor.detach().requires_grad_()
