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
        columns (dict[str, Tensor]): Heading and ``(C,)`` numbers; nan is shown as a dash.
    """
    table = Table('class', title=title, title_justify='left')
    for name in columns:
        table.add_column(name, justify='right')
    for index, name in enumerate(classes):
        values = [float(column[index]) for column in columns.values()]
        table.add_row(name, *('-' if value != value else f'{value:.2f}' for value in values))
    out = io.StringIO()
    Console(file=out, width=200, color_system=None, highlight=False, markup=False).print(table)
    print_log(f'\n{out.getvalue().rstrip()}', logger=MMLogger.get_current_instance())


def percent(part: Tensor, whole: Tensor) -> Tensor:
    """``100 · part / whole`` in float64, nan where there is nothing.

    Examples:
        >>> import torch
        >>> percent(torch.tensor([1, 0]), torch.tensor([4, 0]))
        tensor([25., nan], dtype=torch.float64)
    """
    return 100 * part.double() / whole.double()
