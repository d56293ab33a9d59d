"""Which rows of a file of columns are an episode's, and what becomes of one whose final observation was not stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...pipeline.errors import DatasetError
from ..spaces import as_float32
from .columns import ColumnMap
from .episode_ends import END_PARTS, find_ends, sounds_like_ends
from .table import Column, Group, Table, columns_of, table_of

_LOOKED_AT = 100
"""Episodes whose first rows show whether rows are shifted."""

Final = Literal["row", "shortened", "next", "repeat"]
"""The final observation of an episode: the row at its `stop`, that row because the last transition was given up for it,
the next observation of its last row, or that last row again."""


@dataclass(frozen=True)
class Span:
    """The rows of one episode: of the whole file's columns if it is flat, else of those in a group."""

    group: str
    start: int
    stop: int
    """Row after that of the last transition's first observation."""
    terminated: bool
    final: Final
    """Where the final observation is."""

    def __len__(self) -> int:
        return self.stop - self.start


def find_spans(
    file: Group, groups: Sequence[str], columns: ColumnMap, episode_length: int | None
) -> tuple[list[Span], list[str]]:
    """The episodes of the file, in order, without those that hold no complete transition; and what to warn of."""
    flat = columns.episode_group is None
    counts: list[tuple[int, int]] = []
    marks: dict[str, list[np.ndarray]] = {part: [] for part in columns.ends_named}
    for name in groups:
        table = table_of(file[name])
        counts.append(_count_rows(file[name], table, columns, file.filename))
        for part, key in columns.ends_named.items():
            marks[part].append(_column(table, key))
    firsts = np.cumsum([0, *(num_rows for num_rows, _ in counts)])
    if firsts[-1] == 0:
        raise DatasetError(f"{file.filename}: has no complete transition; expected at least one episode with one")
    ends = find_ends(
        {part: np.concatenate(values) for part, values in marks.items()},
        columns.ends_named,
        int(firsts[-1]),
        file.filename,
        rows_per_episode=episode_length and episode_length + columns.one_more_row,
        group_stops=None if flat else firsts[1:],
        unread=_unread(file, columns) if flat else {},
    )
    warnings = ends.warnings
    spans = []
    num_short = sum(num_rows == 0 for num_rows, _ in counts) if not flat else 0
    for first, stop, terminated in zip(
        ends.starts.tolist(), ends.stops.tolist(), ends.terminated.tolist(), strict=True
    ):
        index = int(np.searchsorted(firsts, first, side="right")) - 1
        start, end = first - int(firsts[index]), stop - int(firsts[index])
        if columns.one_more_row or (not flat and end < counts[index][1]):
            end -= columns.one_more_row
            final: Final = "row"
        elif columns.next_observation:
            final = "next"
        elif terminated:
            final = "repeat"
        else:
            end, final = end - 1, "shortened"
        if end > start:
            spans.append(Span(groups[index], start, end, terminated, final))
        else:
            num_short += 1
    if not spans:
        raise DatasetError(f"{file.filename}: has no complete transition; expected at least one episode with one")
    if num_short:
        warnings.append(f"episodes without a complete transition are skipped: {num_short:,}")
    return spans, warnings


def _column(columns: Table, name: str) -> np.ndarray:
    """[N] a column with one number per row."""
    return columns.rows(name, 0, len(columns[name])).reshape(-1)


def _unread(file: Group, columns: ColumnMap) -> dict[str, np.ndarray]:
    """[N] columns of a flat file that are not read, hold one number per row and have a name that speaks of ends."""
    read = {*columns.ends_named.values(), columns.action, columns.reward, columns.success, *columns.observation}
    names = [name for name in columns_of(file) if name not in read and sounds_like_ends(name)]
    table = table_of(file["/"])
    unread = {name: _column(table, name) for name in names if _is_numbers(table[name]) and width_of(table[name]) == 1}
    return {name: values for name, values in unread.items() if np.isfinite(values).all()}


def looks_shifted(file: Group, columns: ColumnMap, spans: Sequence[Span]) -> bool:
    """Whether the first row of every episode holds nothing, as where a row has the action that led to it.

    Integers are left out: choice 0 is none of nothing.
    """
    shown = spans[:_LOOKED_AT]
    if len(spans) < 2 or columns.shifted or file[spans[0].group][columns.action].dtype.kind != "f":
        return False
    tables: dict[str, Table] = {}

    def empty(span: Span, row: int) -> bool:
        table = tables.setdefault(span.group, table_of(file[span.group]))
        values = joined(table, (columns.action, *([columns.reward] if columns.reward else [])), row, row + 1)
        return bool(((values == 0) | np.isnan(values)).all())

    last = [span.stop - 1 + columns.one_more_row for span in shown]
    return all(empty(span, span.start) for span in shown) and not all(map(empty, shown, last))


def _count_rows(group: Group, table: Table, columns: ColumnMap, path: str) -> tuple[int, int]:
    """Rows of actions T, and rows of observations, which may be T + 1 in an episode's own group.

    Raises:
        DatasetError: another column has a different number of rows, or a row of it not the numbers that are expected.
    """
    where = f"{path}:{group.name.strip('/')}" if columns.episode_group else path
    marks = {part: name for part, name in columns.ends_named.items() if END_PARTS[part].per_row}
    single = (columns.reward, *marks.values(), columns.success)
    named = (columns.action, *single)
    for part, key in columns.ends_named.items():
        if part not in marks:
            _check_numbers(table[key], f"{where}: column {key!r}")
    allowed_one_more = columns.observation if columns.episode_group else ()
    num_rows, stored = -1, -1
    for key in [k for k in named if k is not None] + [*columns.observation, *(columns.next_observation or ())]:
        try:
            column = table[key]
        except KeyError:
            if key in group:  # and cannot be opened
                raise
            raise DatasetError(
                f"{where}: has no column {key!r}, which the first episode has; add or remove it"
            ) from None
        _check_numbers(column, f"{where}: column {key!r}")
        rows = len(column)
        if num_rows < 0:
            num_rows = rows
        if rows != num_rows and not (key in allowed_one_more and rows == num_rows + 1):
            raise DatasetError(
                f"{where}: column {key!r} has {rows} rows, {columns.action!r} has {num_rows}; expected one per "
                "transition. The file is misaligned or truncated: write it again"
            )
        if key in single and width_of(column) != 1:
            _refuse_shape(key, table, columns, where)
        if key in columns.observation:
            stored = rows if stored < 0 else min(stored, rows)
    return num_rows, stored


def _refuse_shape(key: str, table: Table, columns: ColumnMap, where: str) -> None:
    """Raise a DatasetError over a column with several numbers per row where one is expected."""
    shape, num_rows = table[key].shape, table[columns.action].shape
    found = f"{where}: column {key!r} has shape {list(shape)}, {width_of(table[key])} numbers per row; expected one. "
    if len(shape) > 1 and shape[:2] == num_rows[:2] == table[columns.observation[0]].shape[:2]:
        raise DatasetError(
            f"{found}The columns seem to be [episode, time, ...], {shape[0]} episodes of {shape[1]} steps: write them "
            "as [episode * time, ...] with a column that marks each episode's last row, or as one group per episode"
        )
    raise DatasetError(f"{found}Write the relevant one as a column of its own, or name another in a column map")


def _is_numbers(column: Column) -> bool:
    return bool(column.ndim) and column.dtype.kind in "biuf"


def _check_numbers(column: Column, where: str) -> None:
    """Raise a DatasetError unless there is a number, or several, in every row."""
    if not _is_numbers(column):
        found = "one value for the whole episode" if column.ndim == 0 else f"text or records ({column.dtype})"
    elif width_of(column):
        return
    else:
        found = f"no number in a row (shape {list(column.shape)})"
    raise DatasetError(
        f"{where} holds {found}; expected numbers, one row per transition. Convert it, or exclude it by naming the "
        "columns to read in a column map"
    )


def width_of(dataset: Column) -> int:
    """Numbers per row."""
    return math.prod(dataset.shape[1:])


def joined(columns: Table, keys: tuple[str, ...], start: int, stop: int) -> np.ndarray:
    """[stop - start, numbers per row] float32."""
    return np.concatenate(
        [as_float32(columns.rows(key, start, stop).reshape(stop - start, -1)) for key in keys], axis=1
    )
