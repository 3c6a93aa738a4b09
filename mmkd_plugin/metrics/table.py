"""Numbers per class, as a table in the log."""

from __future__ import annotations

import io
from collections.abc import Sequence

from mmengine.logging import MMLogger, print_log
from rich.console import Console
from rich.table import Table
from torch import Tensor


def log_per_class(title: str, classes: Sequence[str], columns: dict[str, Tensor]) -> None:
    """Logs one row per class.

    Args:
        title (str): The heading.
        classes (Sequence[str]): Names of the C classes.
        columns (dict[str, Tensor]): Heading and ``(C,)`` numbers; nan is shown as a dash, and
            numbers that are not whole with two digits.
    """
    table = Table('class')
    for name in columns:
        table.add_column(name, justify='right')
    for index, name in enumerate(classes):
        table.add_row(name, *(_shown(column[index].item()) for column in columns.values()))
    out = io.StringIO()
    Console(file=out, width=200, color_system=None, highlight=False, markup=False).print(table)
    logger = MMLogger.get_current_instance()
    print_log(f'{title}\n{out.getvalue().rstrip()}', logger=logger)


def _shown(value: float) -> str:
    if value != value:
        return '-'
    return str(value) if isinstance(value, int) else f'{value:.2f}'


def percent(part: Tensor, whole: Tensor) -> Tensor:
    """``100 · part / whole`` in float64, nan where there is nothing.

    Examples:
        >>> import torch
        >>> percent(torch.tensor([1, 0]), torch.tensor([4, 0]))
        tensor([25., nan], dtype=torch.float64)
    """
    return 100 * part.double() / whole.double()
