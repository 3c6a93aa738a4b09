"""Outside: a list of modules outside the module tree."""

from __future__ import annotations


class Outside(list):
    """A list of modules that are not submodules of the model that holds it.

    They are in neither the parameters nor the state dict. A copy of the model shares them.
    """

    def __deepcopy__(self, memo: dict) -> Outside:
        return self
