"""Which form of a loss runs: the fast one, or the formula of the paper as it is written."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from torch import Tensor

from mmkd_plugin.tracing import is_compiling

Formula = TypeVar('Formula', bound=Callable[..., Tensor])

_as_written = ContextVar('as_written', default=False)


def with_fast_form(
    fast: Callable[..., Tensor], traced: bool = False
) -> Callable[[Formula], Formula]:
    """Decorate the formula of a paper with a function that computes the same thing faster.

    Eager code runs ``fast``. torch.compile, which fuses operations itself, traces the formula.

    Args:
        fast (Callable): Takes the arguments of the formula, and returns the same scalar.
        traced (bool): Whether torch.compile traces ``fast`` instead, since the compiled formula
            would need more time or memory. Defaults to False.
    """

    def decorate(formula: Formula) -> Formula:
        @functools.wraps(formula)
        def run(*args: Any, **kwargs: Any) -> Tensor:
            plain = not traced if is_compiling() else _as_written.get()
            return (formula if plain else fast)(*args, **kwargs)

        return run

    return decorate


@contextmanager
def formulas_as_written() -> Iterator[None]:
    """Run the formulas themselves in eager code too: a reference for the fast forms.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.losses import HintLoss
        >>> student, teacher = torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
        >>> with formulas_as_written():
        ...     HintLoss()(student, teacher).item()
        1.0
    """
    token = _as_written.set(True)
    try:
        yield
    finally:
        _as_written.reset(token)
