"""Tables in the log, with a row for each class."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.logging import print_log
from rich.table import Table
from torch import Tensor

from mmkd_plugin.words import table_text


def log_per_class(title: str, classes: Sequence[str], columns: dict[str, Tensor]) -> None:
    """Logs one row per class.

    Args:
        title (str): A line above the table.
        classes (Sequence[str]): Names of the C classes.
        columns (dict[str, Tensor]): Numbers ``(C,)`` by the heading of their column. NaN is shown
            as a dash, a number that is not whole with two digits.
    """
    table = Table('class')
    for name in columns:
        table.add_column(name, justify='right')
    for index, name in enumerate(classes):
        table.add_row(name, *(_shown(column[index].item()) for column in columns.values()))
    print_log(f'{title}\n{table_text(table, width=200)}', logger='current')


def _shown(value: float) -> str:
    if value != value:
        return '-'
    return str(value) if isinstance(value, int) else f'{value:.2f}'


def percent(part: Tensor, whole: Tensor) -> Tensor:
    """``100 · part / whole``.

    Args:
        part (Tensor): Numbers of any shape.
        whole (Tensor): Numbers of the same shape.

    Returns:
        Tensor: Percentages in float64, NaN where part and whole are 0.

    Examples:
        >>> import torch
        >>> percent(torch.tensor([1, 0]), torch.tensor([4, 0]))
        tensor([25., nan], dtype=torch.float64)
    """
    return 100 * part.double() / whole.double()
