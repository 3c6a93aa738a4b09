"""Keys of a config that nobody reads are mistakes."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any


def check_keys(here: str, config: dict, known: Any) -> None:
    """Raises a ValueError that names an unknown key and the closest known one."""
    for key in config:
        if key not in known:
            close = get_close_matches(str(key), list(known), n=1, cutoff=0.5)
            hint = f'; did you mean `{close[0]}`?' if close else ''
            raise ValueError(f'{here} has an unknown key `{key}`{hint} (known: {", ".join(known)})')
