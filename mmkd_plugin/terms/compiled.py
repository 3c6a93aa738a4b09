"""Compiled: runs a loss through torch.compile, or as it is if that fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn


class Compiled:
    """Calls a loss through torch.compile, with one graph for all sizes of the maps.

    The first call compiles. If there is no compiler, or the loss cannot be compiled, it warns once
    and calls the loss itself from then on. A copy or an unpickled object compiles again.

    Args:
        here (str): Place in the config, for messages.
        backend (str | Callable): Backend of ``torch.compile``. Defaults to ``'inductor'``.

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
        """Computes the loss.

        Args:
            loss (nn.Module): The loss, the same one in each call.
            args (Any): Positional arguments of the loss.
            kwargs (Any): Keyword arguments of the loss.

        Returns:
            Tensor: The value of the loss.

        Raises:
            Exception: If the loss itself raises one.
        """
        try:
            if self._call is None:
                self._call = compiled(loss, self.backend)
            return self._call(*args, **kwargs)
        except Exception as error:
            value = loss(*args, **kwargs)  # raises the error if the maps are the reason
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
    """Wraps a loss in torch.compile, as one graph for all sizes. The first call compiles.

    Args:
        loss (nn.Module): The loss.
        backend (str | Callable): Backend of ``torch.compile``. Defaults to ``'inductor'``.

    Returns:
        Callable: Takes the arguments of the loss and returns its value.
    """
    traced = torch.compile(loss, backend=backend, fullgraph=True, dynamic=True)

    def call(*args: Any, **kwargs: Any) -> Tensor:
        with _without_duck_shapes():
            return traced(*args, **kwargs)

    return call


def _without_duck_shapes() -> AbstractContextManager:
    """Returns a context in which torch.compile gives equal sizes separate symbols.

    Otherwise two sizes that are equal in the first call count as one.
    """
    try:
        from torch.fx.experimental import _config

        return _config.patch(use_duck_shape=False)
    except (ImportError, AttributeError):  # an older torch compiles again when the sizes differ
        return nullcontext()


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {" ".join(lines[:3])}'[:500]
