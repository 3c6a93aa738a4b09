"""What a loss needs from the teacher's batch norms, as constants or read in each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from mmkd_plugin.terms.needs import FROM_NORM
from mmkd_plugin.terms.outside import Outside


class NormConstants(nn.Module):
    """Keyword arguments of a loss that come from the batch norms that feed the teacher's maps.

    Args:
        needs (Sequence[str]): Names of the arguments; others than those in ``FROM_NORM`` are left
            alone.
        norms (Sequence[tuple]): Name and module for each map, in their order; the module is None
            where none was found.
        live (bool): Whether the norms are trained, so that they are read in every step. Defaults
            to False.

    Raises:
        ValueError: If there is no norm, or it has no weight and bias. The message goes on from
            "the batch norm that feeds this tap".
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
        """The arguments by name: a value, or a list of one for each map."""
        found = {}
        for need in self.needs:
            values = [FROM_NORM[need](n.weight.detach(), n.bias.detach()) for n in self._live]
            values = values or [getattr(self, f'{need}_{n}') for n in range(len(self.names))]
            found[need] = values[0] if len(values) == 1 else values
        return found
