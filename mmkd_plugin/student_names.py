"""The student's names in front: modules, parameters and attributes go by what it calls them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.model import BaseModel
from torch import Tensor, nn


class NamedAsStudent(BaseModel):
    """A model around a student that names all parts as the student alone names them.

    Hooks, optimizer constructors and averages of OpenMMLab go by names such as
    ``backbone.stages.0``. So ``named_modules``, ``named_children``, ``named_parameters`` and
    ``named_buffers`` list the student's parts under the student's names, as the state dict does,
    and then the other parts of this model. An attribute that only the student has is read from the
    student and set there.

    ``modules`` and ``children`` follow the module tree, in which the student is one child: each
    module is seen once, and what recurs through them (``train``, ``apply``, ``to``) reaches the
    student itself.

    A subclass sets ``student`` in its constructor and ends that with ``names_in_front()``.
    """

    student: nn.Module

    def names_in_front(self) -> None:
        """From now on the student's attributes are set in the student."""
        self.__dict__['_named_as_student'] = True

    def to(self, *args: Any, **kwargs: Any) -> NamedAsStudent:
        """Moves this model, and the student by its own ``to``: it may hold more than modules."""
        self.student.to(*args, **kwargs)
        return super().to(*args, **kwargs)

    def cuda(self, device: Any = None) -> NamedAsStudent:
        """Moves this model to a GPU, and the student by its own ``cuda``."""
        self.student.cuda(device)
        return super().cuda(device)

    def _beside(self) -> list[tuple[str, nn.Module]]:
        """The children that are not the student and that the student does not hold itself."""
        held = self.student._modules
        return [
            (name, module)
            for name, module in self._modules.items()
            if module is not None and module is not self.student and held.get(name) is not module
        ]

    def children(self) -> Iterator[nn.Module]:
        """The student, and the parts beside it."""
        yield self.student
        for _, module in self._beside():
            yield module

    def modules(self, remove_duplicate: bool = True) -> Iterator[nn.Module]:
        """This model, the student and all of their parts."""
        for _, module in super().named_modules(remove_duplicate=remove_duplicate):
            yield module

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """The student's children by their names, and the parts beside it."""
        yield from self.student.named_children()
        yield from self._beside()

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = '', remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """This model in the student's place, the student's modules, and those beside it."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, module in self.student.named_modules(memo, prefix, remove_duplicate):
            if module is not self.student:
                yield name, module
        for name, module in self._beside():
            yield from module.named_modules(memo, _dotted(prefix, name), remove_duplicate)

    def named_parameters(
        self, prefix: str = '', recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """The student's parameters by its own names, and those beside it."""
        return self._named('named_parameters', prefix, recurse, remove_duplicate)

    def named_buffers(
        self, prefix: str = '', recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """The student's buffers by its own names, and those beside it."""
        return self._named('named_buffers', prefix, recurse, remove_duplicate)

    def _named(
        self, ask: str, prefix: str, recurse: bool, remove_duplicate: bool
    ) -> Iterator[tuple[str, Any]]:
        """The members of the student and, with ``recurse``, of the parts beside it."""
        parts = [(prefix, self.student)]
        if recurse:
            parts += [(_dotted(prefix, name), module) for name, module in self._beside()]
        seen: set[Tensor] = set()
        for start, module in parts:
            for name, value in getattr(module, ask)(start, recurse, remove_duplicate):
                if value not in seen:
                    if remove_duplicate:
                        seen.add(value)
                    yield name, value

    def __getattr__(self, name: str) -> Any:
        """Falls back on the student, for hooks that read ``model.bbox_head`` and the like."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            modules = self.__dict__.get('_modules', {})
            if 'student' not in modules:
                raise
            return getattr(modules['student'], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_the_students(name):
            setattr(self.student, name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if self._is_the_students(name):
            delattr(self.student, name)
        else:
            super().__delattr__(name)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Replaces a part of the student by its name, or adds a part beside it.

        What converts batch norms, for one, puts each of ``named_children`` back under its name.
        """
        if self._is_the_students(name):
            self.student.add_module(name, module)
        else:
            super().add_module(name, module)

    def _is_the_students(self, name: str) -> bool:
        """Whether the student has an attribute of this name, and this model has none."""
        return (
            '_named_as_student' in self.__dict__
            and not _has(self, name)
            and _has(self.student, name)
        )


def _has(module: nn.Module, name: str) -> bool:
    """Whether a module itself has an attribute, without the fallback of ``__getattr__``."""
    tables = (module.__dict__, module._modules, module._parameters, module._buffers)
    return hasattr(type(module), name) or any(name in table for table in tables)


def _dotted(prefix: str, name: str) -> str:
    return f'{prefix}.{name}' if prefix else name
