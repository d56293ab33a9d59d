"""What commands print: tables for people, JSON for programs (`--json`). Both are of the same plain values."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .logging import duration

Row = Mapping[str, Any]


def add_json(parser: argparse.ArgumentParser) -> None:
    """Declare `--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def print_json(value: Any, console: Console) -> None:
    """Print nested dicts and lists as JSON: paths as text, NaN and infinities as null."""
    console.print_json(data=_finite(value), default=str, highlight=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(*columns: str) -> Table:
    """An empty table without lines, whose long cells go on in the next line."""
    made = Table(box=None, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def rows_table(rows: Iterable[Row], columns: Sequence[str] = (), *, most: int | None = None) -> Table:
    """A row for each mapping.

    Args:
        columns: keys to show if a row has them; empty: all.
        most: rows to show; the others are counted.
    """
    rows = list(rows)
    wanted = columns or dict.fromkeys(key for row in rows for key in row)
    present = [column for column in wanted if any(column in row for row in rows)]
    made = table(*(_HEADINGS.get(column, column.replace("_", " ")) for column in present))
    for row in rows[:most]:
        made.add_row(*(Text(cell(row.get(column), column)) for column in present))
    if most is not None and len(rows) > most:
        made.add_row(f"{len(rows) - most} more")
    return made


def facts_table(facts: Row) -> Table:
    """A line for each entry."""
    made = table("", "")
    made.show_header = False
    for name, value in facts.items():
        made.add_row(_HEADINGS.get(name, name.replace("_", " ")), Text(cell(value, name)))
    return made


def cell(value: Any, key: str = "") -> str:
    """A value as people read it, by the key that it stands under: `seconds` as a duration, `bytes` with their unit."""
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {cell(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value))
    if key == "seconds":
        return duration(value) if value else ""
    if key == "bytes":
        return size(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def size(num_bytes: float) -> str:
    """`80.9 MiB`, `3.1 KiB`."""
    return f"{num_bytes / 2**20:,.1f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:.1f} KiB"


_HEADINGS = {"seconds": "time", "bytes": "size"}
