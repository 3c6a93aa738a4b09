"""Parts of messages: lists of names, guesses at what was meant, errors in one line, tables."""

from __future__ import annotations

import io
import re
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from rich.console import Console
from rich.table import Table


def some(names: Iterable[str], limit: int = 10, separator: str = ', ') -> str:
    """Joins the first of some names and says how many more there are.

    Args:
        names (Iterable[str]): The names.
        limit (int): How many names to write out. Defaults to 10.
        separator (str): Text between two names. Defaults to ``', '``.

    Returns:
        str: Such as ``'a, b and 3 more'``.

    Examples:
        >>> some('abcde', limit=2)
        'a, b and 3 more'
    """
    names = list(names)
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return separator.join(names[:limit]) + more


def did_you_mean(
    name: str, known: Iterable[str], form: str = '`{}`', cutoff: float = 0.6, count: int = 1
) -> str:
    """Names the closest known names to an unknown one.

    Args:
        name (str): The unknown name.
        known (Iterable[str]): The known names.
        form (str): How to write a known name, as for ``str.format``. Defaults to a name between
            backquotes.
        cutoff (float): Similarity from which a name is close, from 0 to 1. Defaults to 0.6.
        count (int): How many names to offer at most. Defaults to 1.

    Returns:
        str: A clause that begins with ``'; '``, or ``''`` if no known name is close.

    Examples:
        >>> did_you_mean('los', ['loss', 'tap'])
        '; did you mean `loss`?'
        >>> did_you_mean('TAP', ['loss', 'tap'])
        '; did you mean `tap`?'
        >>> did_you_mean('schedule', ['loss', 'tap'])
        ''
    """
    names = {one: one for one in known}
    close = get_close_matches(name, names, n=count, cutoff=cutoff)
    if not close:  # TAU is not close to tau
        names = {one.lower(): one for one in names}
        close = get_close_matches(name.lower(), names, n=count, cutoff=cutoff)
    close = [names[one] for one in close]
    return f'; did you mean {" or ".join(map(form.format, close))}?' if close else ''


def first_line(error: Exception, prefer: str | None = None) -> str:
    """The type of an error and the first line of its text that is not empty.

    Args:
        error (Exception): The error.
        prefer (str, optional): Beginning of a line to take instead of the first one, if there is
            such a line. Defaults to None.

    Returns:
        str: One line, with at most 200 characters of the text and without colour codes. An
        assertion without a text is shown as it stands in the source.

    Examples:
        >>> first_line(ValueError('too large\\ntry a smaller one'))
        'ValueError: too large'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if prefer is not None:
        lines.sort(key=lambda line: not line.startswith(prefer))
    if not lines and isinstance(error, AssertionError):
        lines = [frame.line or '' for frame in traceback.extract_tb(error.__traceback__)[-1:]]
    text = ' '.join(re.sub(r'\x1b\[\d*m', '', lines[0]).split())[:200] if lines else ''
    return f'{type(error).__name__}: {text}' if text else type(error).__name__


def from_worker(message: str, kind: str) -> str:
    """The message of an error, without the traceback that a process which loads data put around it.

    Args:
        message (str): The message with which the error is made.
        kind (str): Name of its class.

    Examples:
        >>> from_worker('Original Traceback ... CacheError: it is cut', 'CacheError')
        'it is cut'
    """
    marker = f'{kind}: '
    if 'Original Traceback' in message and marker in message:
        return message.rpartition(marker)[2].strip()
    return message


def path_text(path: Any) -> str:
    """A path as a message shows it: between quotes if it would not be seen otherwise.

    Examples:
        >>> path_text('a.pth'), path_text(' ')
        ('a.pth', "' '")
    """
    text = str(path)
    return text if text.strip() and text.isprintable() else repr(text)


def as_written(kind: Any) -> str:
    """The ``type`` of a dict as text: a pure-Python config has the class itself there."""
    return str(getattr(kind, '__name__', kind))


def type_name(kind: Any) -> str:
    """The name of the class that the ``type`` of a dict is, without its scope or module.

    Examples:
        >>> type_name('mmseg.FCNHead'), type_name(dict)
        ('FCNHead', 'dict')
    """
    return as_written(kind).rpartition('.')[2]


def short(value: Any, limit: int = 80) -> str:
    """A value as one line of a message.

    Args:
        value (Any): The value.
        limit (int): Characters at most. Defaults to 80.

    Examples:
        >>> short('a' * 100, limit=9)
        "'aaaaa..."
    """
    try:
        text = ' '.join(repr(value).split())
    except Exception:
        text = f'a {type(value).__name__}'
    return text if len(text) <= limit else f'{text[: limit - 3]}...'


def table_text(table: Table, width: int) -> str:
    """A table as plain text.

    Args:
        table (Table): The table.
        width (int): Characters of a line at most; longer cells are wrapped.

    Returns:
        str: Lines without trailing white space.
    """
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, highlight=False, markup=False).print(table)
    return '\n'.join(line.rstrip() for line in out.getvalue().splitlines())
