"""What goes to stdout, as a table, JSON or CSV; and the consoles. stdout is data, stderr is progress."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from ranksearch.cli.figures import is_known

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Column",
    "Format",
    "Row",
    "data_console",
    "fitted_table",
    "notes_console",
    "print_frame",
    "print_rows",
    "records_of",
]

Row = Mapping[str, Any]
UNLIMITED = 1000  # characters a line, where nothing shows how wide the reader's window is
MIN_WRAPPED = 20  # characters that a column of wrapped text keeps
GAP = 2  # characters between columns


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    CSV = "csv"


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """`rank` 0 is always shown; where the window is narrow, the largest ranks go first."""

    header: str
    cell: Callable[[Row], str]
    rank: int = 0
    justify: Literal["left", "right"] = "right"
    wrap: bool = False


def data_console() -> Console:
    """stdout: as wide as the window, and without a limit where it is piped."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else UNLIMITED
    return Console(width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def notes_console() -> Console:
    """stderr."""
    width = None if sys.stderr.isatty() or "COLUMNS" in os.environ else UNLIMITED
    return Console(stderr=True, width=width, highlight=False, markup=False, emoji=False)


def print_frame(frame: "pd.DataFrame", columns: Sequence[Column], form: Format) -> None:
    """A frame whose index is named. JSON and CSV have all its columns and exact values, a table those of `columns`."""
    if form is Format.CSV:
        sys.stdout.write(frame.to_csv(lineterminator="\n"))
    else:
        print_rows(records_of(frame), columns, form)


def print_rows(rows: Sequence[Row], columns: Sequence[Column], form: Format) -> None:
    if form is Format.JSON:
        sys.stdout.write(json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        return
    console = data_console()
    console.print(fitted_table(rows, columns, console.width))


def records_of(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    """Plain rows, the index included. What is missing is None; a plan is a dict."""
    records = frame.reset_index().to_dict("records")
    return [{str(name): _plain(str(name), value) for name, value in record.items()} for record in records]


def _plain(name: str, value: Any) -> Any:
    if not is_known(value):
        return None
    if name == "plan":
        return json.loads(value)
    return value.item() if hasattr(value, "item") else value


def fitted_table(rows: Sequence[Row], columns: Sequence[Column], width: int) -> Table:
    """The columns that fit `width`, the dispensable ones dropped first, and those that say nothing."""
    shown = [_Shown(column, [column.cell(row) for row in rows]) for column in columns]
    shown = [column for column in shown if any(column.cells) or not rows]
    for most in sorted({column.column.rank for column in shown}, reverse=True):
        fitting = [column for column in shown if column.column.rank <= most]
        if sum(column.min_width + GAP for column in fitting) - GAP <= width:
            break
    return _table(fitting)


@dataclass(frozen=True, slots=True)
class _Shown:
    column: Column
    cells: Sequence[str]

    @property
    def min_width(self) -> int:
        width = max(map(cell_len, (self.column.header, *self.cells)))
        return min(width, MIN_WRAPPED) if self.column.wrap else width


def _table(columns: Sequence[_Shown]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    for shown in columns:
        column = shown.column
        table.add_column(
            column.header,
            justify=column.justify,
            no_wrap=not column.wrap,
            min_width=shown.min_width,
            overflow="fold",
        )
    for row in zip(*(shown.cells for shown in columns), strict=True):
        table.add_row(*row)
    return table
