"""Taps: read a tensor at a named module while a model runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Union

from torch import Tensor, nn

Maps = Union[Tensor, list[Tensor]]

_FORM = re.compile(r'(?P<path>[\w.]+)(?P<index>(\[-?\d+\])*)(@(?P<where>input|output))?')


@dataclass(frozen=True)
class Tap:
    """A place in a model: a module, its input or its output, and an element of it.

    Args:
        path (str): Dotted name of a module, as in ``model.named_modules()``.
        index (tuple[int]): Elements to take one after the other, of a module that gives a sequence
            or runs several times in one forward. Defaults to ``()``, everything.
        where (str): ``'output'`` or ``'input'``. Defaults to ``'output'``.

    Examples:
        >>> Tap.parse('neck[2]')
        Tap(path='neck', index=(2,), where='output')
        >>> str(Tap.parse('backbone.layer4@input'))
        'backbone.layer4@input'
    """

    path: str
    index: tuple[int, ...] = ()
    where: str = 'output'

    @classmethod
    def parse(cls, text: str) -> Tap:
        """Reads ``'a.b'``, ``'a.b@input'`` or ``'a.b[2]'``.

        Raises:
            ValueError: If the text has another form.
        """
        match = _FORM.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(
                f"{text!r} is not a tap: expected 'module.path', 'module.path@input' or "
                "'module.path[2]' (a child of a list is written 'layers.0.conv')"
            )
        index = tuple(int(number) for number in re.findall(r'-?\d+', match['index']))
        return cls(match['path'], index, match['where'] or 'output')

    def __str__(self) -> str:
        index = ''.join(f'[{number}]' for number in self.index)
        return f'{self.path}{index}' + ('@input' if self.where == 'input' else '')


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
        clone (Collection[Tap]): Taps whose tensor is changed in place later in the forward (an
            in-place ReLU behind a batch norm, say) and which are copied for that reason.
        stop_after (Mapping[Tap, int], optional): How many times each tap runs in one forward. If
            given, the forward ends as soon as all of them have.

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
    ) -> None:
        self.model = model
        self.taps = list(dict.fromkeys(taps))
        self.clone = clone
        self._missing = Counter(stop_after) if stop_after is not None else None
        self._values: dict[Tap, list[Any]] = {tap: [] for tap in self.taps}
        self._versions: dict[Tap, list[tuple[Tensor, int]]] = {tap: [] for tap in self.taps}
        self._handles: list = []

    def __enter__(self) -> TapReader:
        for tap in self.taps:
            module = find_module(self.model, tap, 'the model')
            if tap.where == 'input':
                handle = module.register_forward_pre_hook(
                    lambda _, args, kwargs, tap=tap: self._keep(tap, _only(args, kwargs)),
                    with_kwargs=True,
                )
            else:
                handle = module.register_forward_hook(
                    lambda _, __, output, tap=tap: self._keep(tap, output)
                )
            self._handles.append(handle)
        return self

    def __exit__(self, kind: type | None, *_: Any) -> bool:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        return kind is _AllSeen

    def _keep(self, tap: Tap, value: Any) -> None:
        if tap in self.clone:
            value = _map_tensors(value, Tensor.clone)
        else:
            self._versions[tap] += [(tensor, tensor._version) for tensor in _tensors(value)]
        self._values[tap].append(value)
        if self._missing is not None:
            self._missing[tap] -= 1
            if all(count <= 0 for count in self._missing.values()):
                raise _AllSeen

    def calls(self, tap: Tap) -> int:
        """How often the tap's module has run."""
        return len(self._values[tap])

    def changed_in_place(self, tap: Tap) -> bool:
        """Whether something wrote into the tap's tensor after it was read."""
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


def _map_tensors(value: Any, function: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_map_tensors(item, function) for item in value]
    return function(value) if isinstance(value, Tensor) else value
