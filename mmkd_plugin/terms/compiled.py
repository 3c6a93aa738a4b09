"""A loss run through torch.compile, and as it is where that does not work."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn


class Compiled:
    """Calls a loss through torch.compile, one graph for all sizes of the maps.

    It compiles in the first call. Where there is no compiler, or the loss cannot be compiled, it
    says so once and calls the loss itself from then on. A copy or a pickle of it compiles anew.

    Args:
        here (str): What the warning calls the place in the config.
        backend (str | Callable): What compiles the graph. Defaults to ``'inductor'``.

    Examples:
        >>> import torch
        >>> from mmkd_plugin.terms.compiled import Compiled
        >>> from mmkd_plugin.losses import HintLoss
        >>> call, loss = Compiled('distill.hint', backend='eager'), HintLoss()
        >>> [call(loss, torch.ones(2, 3, n, 4), torch.zeros(2, 3, n, 4)).item() for n in (5, 6)]
        [1.0, 1.0]
    """

    def __init__(self, here: str, backend: str | Callable = 'inductor') -> None:
        self.here = here
        self.backend = backend
        self._call: Callable[..., Tensor] | None = None

    def __call__(self, loss: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of what it is given.

        Args:
            loss (nn.Module): The same one in each call.
            args (Any): What it takes.
            kwargs (Any): What it takes by name.

        Raises:
            Exception: What the loss itself raises.
        """
        try:
            if self._call is None:
                self._call = compiled(loss, self.backend)
            return self._call(*args, **kwargs)
        except Exception as error:
            value = loss(*args, **kwargs)  # what is wrong with the maps is said here
            self._call = loss
            print_log(
                f'{self.here}: {type(loss).__name__} is not compiled, it runs as it is. '
                f'torch.compile said: {_first_lines(error)}',
                logger='current',
                level=logging.WARNING,
            )
            return value

    def __reduce__(self) -> tuple:
        return Compiled, (self.here, self.backend)


def compiled(loss: nn.Module, backend: str | Callable = 'inductor') -> Callable[..., Tensor]:
    """A loss as one graph for all sizes, compiled when it is called for the first time.

    Args:
        loss (nn.Module): The loss.
        backend (str | Callable): What compiles the graph. Defaults to ``'inductor'``.
    """
    traced = torch.compile(loss, backend=backend, fullgraph=True, dynamic=True)

    def call(*args: Any, **kwargs: Any) -> Tensor:
        with _no_size_stands_for_another():
            return traced(*args, **kwargs)

    return call


def _no_size_stands_for_another() -> AbstractContextManager:
    """Keeps torch.compile from taking two sizes for one because they are equal at first."""
    try:
        from torch.fx.experimental import _config

        return _config.patch(use_duck_shape=False)
    except (ImportError, AttributeError):  # older ones compile again when the two differ
        return nullcontext()


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {" ".join(lines[:3])}'[:500]
