"""Tap: a place in a model, the input or output of a named module; Maps: the tensors there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from mmkd_plugin.taps.classifiers import (
    CLASS_SCORES,
    classifier_in,
    heads_that_classify,
    taken_by,
)

Maps = Tensor | list[Tensor]

#: Other names of places: for each a function of a model, a tap and the model's name in messages.
FOUND_BY: dict[str, Callable[[nn.Module, Any, str], tuple]] = {}

_FORM = re.compile(
    r'(?P<path>[\w.]+)(?P<index>(\[-?\d+\])*)(@(?P<where>input|output|pre_relu|class_scores))?'
)


@dataclass(frozen=True)
class Tap:
    """One place in a model: the output or input of a module, or an element of it.

    Args:
        path (str): Dotted name of a module, as in ``model.named_modules()``. ``'class_scores'`` is
            the place of the class scores of a model, whatever that module is called.
        index (tuple[int, ...]): Indices, applied one after the other, into the sequence that a
            module returns, or into the runs of a module that runs several times in one forward.
            Defaults to ``()``: everything.
        where (str): ``'output'``, ``'input'``, ``'pre_relu'``: the input of the ReLU whose output
            the module returns, or ``'class_scores'``: the class scores of a head for each position.
            Defaults to ``'output'``.
        call (int, optional): Number of a run of a module that runs several times in one forward,
            from 0. A dry forward finds it; a config cannot set it. Defaults to None: all runs.

    Examples:
        >>> from mmkd_plugin import Tap
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
        """Parses the text of a tap in a config.

        Args:
            text (str): ``'a.b'``, ``'a.b@input'``, ``'a.b@pre_relu'``, ``'a.b[2]'``,
                ``'class_scores'``, ``'class_scores@input'`` or ``'a.b@class_scores'``.

        Returns:
            Tap: The tap.

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

    @property
    def named(self) -> bool:
        """Whether it asks for something by its name in all models; see :func:`places_of`."""
        return CLASS_SCORES in (self.path, self.where) or self.path in FOUND_BY

    def __str__(self) -> str:
        index = ''.join(f'[{number}]' for number in self.index)
        return f'{self.path}{index}' + ('' if self.where == 'output' else f'@{self.where}')


@dataclass(frozen=True)
class Taps:
    """One tap, or several that are read as one list of maps.

    Args:
        taps (tuple[Tap, ...]): The taps, in the order of the maps.

    Examples:
        >>> from mmkd_plugin import Taps
        >>> str(Taps.parse(['backbone.layer3', 'neck']))
        'backbone.layer3, neck'
    """

    taps: tuple[Tap, ...]

    @classmethod
    def parse(cls, value: Any) -> Taps:
        """Parses the text of a tap, or a list of such texts.

        Args:
            value (str | list[str]): As :meth:`Tap.parse` takes it, or a list of such texts.

        Returns:
            Taps: The taps.

        Raises:
            ValueError: If the list is empty or a text has another form.
        """
        texts = value if isinstance(value, (list, tuple)) else [value]
        if not texts:
            raise ValueError('a list of taps cannot be empty')
        return cls(tuple(Tap.parse(text) for text in texts))

    @property
    def repeats(self) -> bool:
        """Whether a tap is named twice."""
        return len(set(self.taps)) < len(self.taps)

    def __iter__(self) -> Iterator[Tap]:
        return iter(self.taps)

    def __str__(self) -> str:
        return ', '.join(map(str, self.taps))

    def of(self, values: Mapping[Tap, Maps]) -> Maps:
        """Selects the maps at these taps.

        Args:
            values (Mapping[Tap, Maps]): The maps at each tap of a model.

        Returns:
            Tensor | list[Tensor]: The maps of a single tap as they are; those of several taps as
            one list.
        """
        if len(self.taps) == 1:
            return values[self.taps[0]]
        return [tensor for tap in self.taps for tensor in flatten(values[tap])]


def places_of(model: nn.Module, tap: Tap, owner: str = 'the model') -> tuple[Tap, ...]:
    """Finds the places in a model that a tap reads: for class scores, the modules behind the name.

    Args:
        model (nn.Module): The model.
        tap (Tap): The tap.
        owner (str): Name of the model in the error. Defaults to ``'the model'``.

    Returns:
        tuple[Tap, ...]: A place for each head whose class scores are asked for; of a head that
        runs twice in training, its first run. Another tap is its own place.

    Raises:
        ValueError: If the model has no class scores for each position, or nothing lies where the
            tap asks for it.

    Examples:
        >>> head = nn.ModuleDict(dict(conv_seg=nn.Conv2d(8, 5, 1)))
        >>> head.num_classes, model = 5, nn.ModuleDict(dict(decode_head=head))
        >>> str(places_of(model, Tap.parse('class_scores'))[0])
        'decode_head.conv_seg'
    """
    if not tap.named or (
        tap.path == CLASS_SCORES and isinstance(_child(model, tap.path), nn.Module)
    ):
        return (tap,)
    if tap.path in FOUND_BY:
        return FOUND_BY[tap.path](model, tap, owner)
    if tap.index:
        plain = str(replace(tap, index=()))
        raise ValueError(f"{owner}: '{tap}': class scores have no elements; write '{plain}'")
    if tap.path != CLASS_SCORES:
        find_module(model, Tap(tap.path), owner)
    found = heads_that_classify(model, None if tap.path == CLASS_SCORES else tap.path)
    if not found:
        where = '' if tap.path == CLASS_SCORES else f" in '{tap.path}'"
        raise ValueError(
            f"{owner} has no '{tap}': no head{where} of a segmentor that gives the class scores of "
            'each position was found. Tap a module by its name; docs/taps.md lists those of '
            'detectors'
        )
    return tuple(_in_head(model, name, tap, owner) for name in found)


def _in_head(model: nn.Module, name: str, tap: Tap, owner: str) -> Tap:
    head = model.get_submodule(name)
    classifier = classifier_in(head)
    if tap.where == 'input':
        if classifier is None:
            raise ValueError(
                f"{owner}: nothing can be read at '{tap}': {type(head).__name__} ('{name}') gives "
                'its class scores without a last convolution. Tap a map before it by its name'
            )
        return Tap(f'{name}.{taken_by(head)}', where='input', call=0)
    if classifier is None:
        return Tap(name, where=CLASS_SCORES, call=0)
    return Tap(f'{name}.{classifier}', call=0)


def _child(module: nn.Module, name: str) -> nn.Module | None:
    return dict(module.named_children()).get(name)


def find_module(model: nn.Module, tap: Tap, owner: str) -> nn.Module:
    """Returns the module that a tap names; for class scores, the one that gives them.

    Args:
        model (nn.Module): The model that has the module.
        tap (Tap): The tap.
        owner (str): Name of the model in the error, such as ``'the student'``.

    Returns:
        nn.Module: The module.

    Raises:
        ValueError: If there is no such module. The message names the closest modules, and the
            children of the last part of the path that exists.
    """
    tap = places_of(model, tap, owner)[0]
    module, known = model, []
    for part in tap.path.split('.'):
        child = _child(module, part)
        if child is None:
            break
        module = child
        known.append(part)
    else:
        return module

    right = '.'.join(known)
    names = [name for name, _ in model.named_modules() if name and name != right]
    names += [CLASS_SCORES] * bool(heads_that_classify(model))
    last = tap.path.rsplit('.', 1)[-1]
    close = get_close_matches(tap.path, names, n=3, cutoff=0.7)
    close += [name for name in names if name.rsplit('.', 1)[-1] == last and name not in close][:3]
    message = f"{owner} has no module '{tap.path}'."
    if close:
        message += f' Closest: {", ".join(close[:4])}.'
    where = f"'{right}'" if right else 'It'  # the owner: a sentence begins here
    children = ', '.join(name for name, _ in module.named_children())
    if right and not children:
        raise ValueError(
            f"{message} '{right}' contains no modules; take '{right}' itself, or a module outside "
            'it.'
        )
    raise ValueError(f'{message} {where} contains{f": {children}" if children else " no modules"}.')


def module_around(model: nn.Module, tap: Tap, attribute: str) -> nn.Module | None:
    """Finds the innermost module around a tap that has an attribute.

    Args:
        model (nn.Module): The model that has the tapped module.
        tap (Tap): The tap.
        attribute (str): Name of an attribute that is a whole number, such as ``'num_classes'``.

    Returns:
        nn.Module | None: The tapped module or one that contains it, or None if none of them has
        the attribute.

    Raises:
        ValueError: If the model does not have the module that the tap names.

    Examples:
        >>> head = nn.Sequential(nn.Conv2d(8, 5, 1))
        >>> head.num_classes = 5
        >>> module_around(nn.ModuleDict(dict(head=head)), Tap('head.0'), 'num_classes') is head
        True
    """
    parts = places_of(model, tap)[0].path.split('.')
    for end in range(len(parts), 0, -1):
        module = find_module(model, Tap('.'.join(parts[:end])), 'the model')
        if isinstance(getattr(module, attribute, None), int):
            return module
    return None


def classes_around(model: nn.Module, tap: Tap) -> int | None:
    """Returns ``num_classes`` of the innermost module around a tap that has it.

    Args:
        model (nn.Module): The model that has the tapped module.
        tap (Tap): The tap.

    Returns:
        int | None: The number of classes, or None if it is not known.
    """
    module = module_around(model, tap, 'num_classes')
    return None if module is None else module.num_classes


def as_list(maps: Maps) -> list[Tensor]:
    """Returns one map or several as a list."""
    return [maps] if isinstance(maps, Tensor) else list(maps)


def describe(value: Any) -> str:
    """Describes a value for a message: tensors by their shape, other values by their type.

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


def flatten(value: Any) -> Iterator[Any]:
    """Yields the elements of nested lists and tuples; another value is yielded as it is."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from flatten(item)
    else:
        yield value


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Applies a function to each tensor in nested lists, tuples and dicts."""
    if isinstance(value, (list, tuple)):
        items = [map_tensors(item, function) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, dict):
        return {key: map_tensors(item, function) for key, item in value.items()}
    return function(value) if isinstance(value, Tensor) else value
