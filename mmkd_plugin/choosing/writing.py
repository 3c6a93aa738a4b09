"""The config of a distilled student, as a person would write it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from mmkd_plugin.choosing.choosing import Choice

TEMPLATE = """{why}
_base_ = [{student!r}]

model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{{{_base_.model}}}},
    teacher=dict(
        config={config!r},
        checkpoint={checkpoint!r}),
    distill=dict(
{terms}))
"""

TERM = """        {name}=dict(
{taps},
            loss={loss})"""


def config_text(student: str, teacher: str, checkpoint: str, choice: Choice) -> str:
    """Writes a config.

    Args:
        student (str): The student's config: a path, or ``package::path``.
        teacher (str): The teacher's config.
        checkpoint (str): File or URL of the teacher's weights.
        choice (Choice): What is compared.

    Returns:
        str: The text of a Python config file.

    Examples:
        >>> loss = dict(type='mmkd_plugin.ChannelWiseLoss', tau=1, loss_weight='auto')
        >>> choice = Choice('neck', 'cwd', dict(tap='neck', loss=loss), 'levels of the neck')
        >>> text = config_text('student.py', 'teacher.py', 'teacher.pth', choice)
        >>> text.splitlines()[-1].strip()
        "loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=1, loss_weight='auto'))))"
    """
    return TEMPLATE.format(
        why=textwrap.fill(choice.said, 100, initial_indent='# ', subsequent_indent='# '),
        student=student,
        config=teacher,
        checkpoint=checkpoint,
        terms=',\n'.join(_term(name, term) for name, term in choice.terms.items()),
    )


def _term(name: str, term: Mapping[str, Any]) -> str:
    taps = [f'            {k}={_written(v)}' for k, v in term.items() if k != 'loss']
    return TERM.format(name=name, taps=',\n'.join(taps), loss=_call(term['loss']))


def _written(value: Any) -> str:
    return _call(value) if isinstance(value, Mapping) else repr(value)


def _call(values: Mapping[str, Any]) -> str:
    return f'dict({", ".join(f"{key}={value!r}" for key, value in values.items())})'
