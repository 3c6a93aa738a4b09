"""The files of a config, and which of its keys each sets."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

#: Where the text of a config goes on with another of its files, the bases first.
NAME_OF_FILE = re.compile(r'^(\S.*\.(?:py|json|ya?ml))$', re.MULTILINE)
#: The folder of stock configs in an installed library.
STOCK = '.mim'


class File(NamedTuple):
    """A file of a config.

    Args:
        name (str): Its path.
        text (str): What stands in it.
    """

    name: str
    text: str

    @property
    def is_stock(self) -> bool:
        """Whether it came with a library."""
        return STOCK in Path(self.name).parts

    def sets(self, key: str) -> bool:
        """Whether it sets a key at its top."""
        return re.search(rf'^{re.escape(key)}\b', self.text, re.MULTILINE) is not None

    def uses(self, key: str) -> bool:
        """Whether it reads a variable, its own or that of a base; True if it is no Python."""
        if re.search(rf'_base_\.{re.escape(key)}\b', self.text):
            return True
        try:
            tree = ast.parse(self.text)
        except SyntaxError:
            return True
        names = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
        return any(node.id == key and isinstance(node.ctx, ast.Load) for node in names)


def files_of(cfg: Config) -> list[File]:
    """The files that a config was read from, each after its bases.

    Args:
        cfg (Config): The config, as ``Config.fromfile`` gives it.
    """
    _, *parts = NAME_OF_FILE.split(cfg.text or '')
    return [File(name, text) for name, text in zip(parts[::2], parts[1::2])]


def is_used(value: Any, rest: Any) -> bool:
    """Whether a variable of a config, a dict or a list, occurs in another part of it."""
    if not isinstance(value, (dict, list, tuple)):
        return False
    if isinstance(rest, dict):
        return any(one == value or is_used(value, one) for one in rest.values())
    if isinstance(rest, (list, tuple)):
        return any(one == value or is_used(value, one) for one in rest)
    return False
