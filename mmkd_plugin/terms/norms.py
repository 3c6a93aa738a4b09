"""Arguments of a loss that come from the teacher's batch norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from mmkd_plugin.terms.needs import FROM_NORM
from mmkd_plugin.terms.outside import Outside


class NormConstants(nn.Module):
    """Computes arguments of a loss from the batch norms that feed the teacher's maps.

    Args:
        needs (Sequence[str]): The ``needs`` of the loss. Those that are not in ``FROM_NORM`` are
            skipped.
        norms (Sequence[tuple[str, Any]]): Name and module of the norm of each map, in the order of
            the maps. The module is None if no norm was found.
        live (bool): Whether the norms are trained along and read in each step. Else the arguments
            are constants. Defaults to False.

    Raises:
        ValueError: If a norm is None, or has no weight and bias. The message is a clause about "the
            batch norm that feeds this tap".
    """

    def __init__(
        self,
        needs: Sequence[str],
        norms: Sequence[tuple[str, Any]],
        live: bool = False,
    ) -> None:
        super().__init__()
        self.needs = [need for need in needs if need in FROM_NORM]
        self.names = [name for name, _ in norms]
        self._live = Outside(norm for _, norm in norms) if live else Outside()
        for position, (name, norm) in enumerate(norms):
            weight, bias = getattr(norm, 'weight', None), getattr(norm, 'bias', None)
            if weight is None or bias is None:
                kind = type(norm).__name__
                raise ValueError(f"'{name}' is a {kind} without them" if norm else 'none was found')
            for need in self.needs if not live else ():
                value = FROM_NORM[need](weight.detach(), bias.detach())
                self.register_buffer(f'{need}_{position}', value, persistent=False)

    def forward(self) -> dict[str, Any]:
        """Computes the arguments by name: a value for a single map, else a list of values."""
        found = {}
        for need in self.needs:
            values = [FROM_NORM[need](n.weight.detach(), n.bias.detach()) for n in self._live]
            values = values or [getattr(self, f'{need}_{n}') for n in range(len(self.names))]
            found[need] = values[0] if len(values) == 1 else values
        return found
