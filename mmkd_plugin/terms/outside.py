"""Modules outside of the module tree."""

from __future__ import annotations


class Outside(list):
    """Modules that the tree of a model does not see; a copy of the model shares them."""

    def __deepcopy__(self, memo: dict) -> Outside:
        return self
