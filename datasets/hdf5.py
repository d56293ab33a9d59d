"""HDF5 files as episodes: flat ones in D4RL's style, one group per episode in robomimic's, others by a column map.

Decides where the episodes of a file end and what becomes of one whose final observation was not stored; `columns.py`
decides where the parts of a transition are. Files are read one episode at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from ..pipeline.errors import DatasetError
from ..pipeline.paths import user_path
from ..pipeline.reading import reading
from .actions import ActionExtent, ActionScale, Choices, read_actions
from .columns import ColumnMap, check_size, detect_columns
from .schema import Behaviour, Episode, TaskSpec
from .spaces import as_float32, flat_parts, order_parts
from .task_from_data import limit_warnings, split_overrides, success_flags
from .tasks import recorded_in

_CHUNK = 65536
"""Rows of actions that are looked at together when fitting their scale."""

_FINAL_NOT_STORED = (
    "not stored: an episode that was cut off is one transition shorter; the last observation of one that terminated "
    "stands in for its terminal one"
)


Final = Literal["row", "shortened", "next", "repeat"]
"""The final observation of an episode: the row at its `stop`, that row because the last transition was given up for it,
the next observation of its last row, or that last row again."""


@dataclass(frozen=True)
class _Span:
    """The rows of one episode: of the whole file's columns if it is flat, else of those in a group."""

    group: str
    start: int
    stop: int
    terminated: bool
    final: Final
    """Where the final observation is."""

    def __len__(self) -> int:
        return self.stop - self.start


class Hdf5Reader:
    """An HDF5 file as an EpisodeReader.

    Without next observations, an episode that was cut off loses its last transition, because where that led was not
    stored. One that terminated keeps it, for the sake of its reward and the termination itself: the last observation
    stands in for the terminal one, from which nothing is bootstrapped. `source["final_observation"]` says so.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        columns: ColumnMap | Mapping[str, Any] | str | Path | None = None,
        name: str | None = None,
        behaviour: Behaviour | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        """Open a file and find its episodes.

        Args:
            path: the file.
            columns: where things are, as a ColumnMap, a mapping of its fields, or a YAML file of them; None to detect.
            name: of the task; default `hdf5/<file name without its ending>`.
            behaviour: how the data was made; default `unknown`.
            overrides: fields of TaskSpec that the file cannot tell (episode_length, score_random, ...; `environment` as
                `recorded_in` takes it), `action_low` with `action_high`, the native bounds of its actions, and
                `choices_start`, the number of the first choice.

        Raises:
            TaskError: the environment that is named cannot be built, or is not one that the file was recorded in.
            DatasetError: the file is missing or damaged, a column is missing, or no end of an episode can be found.
        """
        self._path = user_path(path)
        fields, settings = split_overrides(overrides, str(self._path))
        named = fields.pop("environment", None)
        environment = recorded_in(named) if named else None
        with _open(self._path) as file:
            given = detect_columns(file) if columns is None else ColumnMap.load(columns)
            self._columns = given.resolve(file)
            self._spans = _find_spans(file, self._columns, fields.get("episode_length"))
            first = file[self._spans[0].group]
            self.warnings: list[str] = []
            if environment is not None:
                parts = [(key, _width(first[key])) for key in self._columns.observation]
                order, self.warnings = order_parts(parts, flat_parts(environment.observation_space))
                self._columns = self._columns.reorder(order)
            names = _column_names(first, self._columns.observation)
            width = _width(first[self._columns.action])
            self._actions, said = read_actions(
                ActionExtent.of(self._action_chunks(file, width), width),
                fields,
                settings,
                None if environment is None else environment.action_space,
                str(self._path),
            )
            self.warnings += said
        action_dim = self._actions.count if isinstance(self._actions, Choices) else width
        longest = max(len(span) for span in self._spans)
        derived: dict[str, Any] = {
            "name": name or f"hdf5/{self._path.stem}",
            "observation_dim": len(names),
            "action_dim": action_dim,
            "action_kind": "discrete" if isinstance(self._actions, Choices) else "continuous",
            "episode_length": longest,
            "terminates": any(span.terminated for span in self._spans),
            "reports_success": self._columns.success is not None,
        }
        if environment is not None:
            derived |= environment.fields
            if isinstance(self._actions, ActionScale):
                derived["environment"] = {**derived["environment"], **self._actions.environment_bounds()}
            self.warnings += limit_warnings(environment.fields, fields, longest)
        self.task = TaskSpec.from_dict(derived | fields)
        self.name = self.task.name
        self.behaviour: Behaviour = behaviour or "unknown"
        final_stored = all(span.final in ("row", "next") for span in self._spans)
        self.source: Mapping[str, Any] = {
            "format": "hdf5",
            "path": str(self._path.resolve()),
            "layout": self._columns.to_dict(),
            "columns": names,
            "actions": self._actions.describe(),
            "final_observation": "stored" if final_stored else _FINAL_NOT_STORED,
        }
        if (len(names), action_dim) != (self.task.observation_dim, self.task.action_dim):
            raise DatasetError(
                f"{self._path}: the settings say observation_dim {self.task.observation_dim} and action_dim "
                f"{self.task.action_dim}, the file has {len(names)} and {action_dim}; correct or drop those settings"
            )

    def __len__(self) -> int:
        return len(self._spans)

    def __iter__(self) -> Iterator[Episode]:
        with _open(self._path) as file:
            for index, span in enumerate(self._spans):
                flat = self._columns.episode_group is None
                where = f"episode {index} (from row {span.start})" if flat else span.group.strip("/")
                label = f"{self._path}:{where}"
                try:
                    episode = self._read(file[span.group], span, label)
                except OSError as error:
                    raise DatasetError(f"{label} cannot be read ({error}); fetch or write the file again") from error
                yield episode

    def _read(self, group: h5py.Group, span: _Span, label: str) -> Episode:
        stop = span.stop + (span.final in ("row", "shortened"))
        observations = _joined(group, self._columns.observation, span.start, stop)
        if span.final == "next":
            final = _joined(group, self._columns.next_observation, span.stop - 1, span.stop)
            observations = np.concatenate([observations, final])
        elif span.final == "repeat":
            observations = np.concatenate([observations, observations[-1:]])
        actions = group[self._columns.action][span.start : span.stop]
        if isinstance(self._actions, Choices):
            actions = self._actions(actions, label)
        else:
            actions = self._actions(actions.reshape(len(span), -1))
        success = None
        if self.task.reports_success and self._columns.success is not None:
            success = success_flags(group[self._columns.success][span.start : span.stop], len(span), label)
        rewards = _joined(group, (self._columns.reward,), span.start, span.stop).reshape(-1)
        return Episode(observations, actions, rewards, span.terminated, success, label)

    def _action_chunks(self, file: h5py.File, width: int) -> Iterator[np.ndarray]:
        for group in self._columns.groups(file):
            actions = file[group][self._columns.action]
            if _width(actions) != width:
                raise DatasetError(
                    f"{self._path}:{group.strip('/')}: actions have {_width(actions)} components, those of the first "
                    f"episode {width}; remove the episodes that are not of this task"
                )
            for start in range(0, len(actions), _CHUNK):
                yield actions[start : start + _CHUNK].reshape(-1, width)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    """The open file; whatever it raises in the block becomes a DatasetError."""
    if not path.is_file():
        raise DatasetError(f"no HDF5 file at {path}: expected an existing .hdf5 or .h5 file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be opened as HDF5 ({error}); it is damaged or of another format, fetch or write it again"
        ) from error
    with reading(path, DatasetError, "fetch or write it again"), file:
        yield file


def _find_spans(file: h5py.File, columns: ColumnMap, episode_length: int | None) -> list[_Span]:
    """The episodes of the file, in order, without those that hold no complete transition."""
    spans = []
    for name in columns.groups(file):
        group = file[name]
        num_rows, stored = _count_rows(group, columns, file.filename)
        if num_rows == 0:
            continue
        terminated, ends = _ends(group, columns, num_rows, episode_length, file.filename)
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            ends_terminal = bool(terminated[end - 1])
            if columns.episode_group is not None and end < stored:
                final: Final = "row"
            elif columns.next_observation:
                final = "next"
            elif ends_terminal:
                final = "repeat"
            else:
                end, final = end - 1, "shortened"
            if end > start:
                spans.append(_Span(name, start, end, ends_terminal, final))
    if not spans:
        raise DatasetError(f"{file.filename}: holds no complete transition; expected at least one episode of one")
    return spans


def _ends(
    group: h5py.Group, columns: ColumnMap, num_rows: int, episode_length: int | None, path: str
) -> tuple[np.ndarray, list[int]]:
    """The terminated flag of each row, and the row after each episode's last.

    A group is one episode and ends at its first termination. A flat file ends one at each flag and, where it has no
    truncation column, after `episode_length` decisions, as D4RL does with its oldest files.
    """

    def flags(key: str | None) -> np.ndarray:
        return np.zeros(num_rows, bool) if key is None else group[key][:num_rows].reshape(-1) > 0

    terminated = flags(columns.terminated)
    if columns.episode_group is not None:
        return terminated, [int(np.argmax(terminated)) + 1 if terminated.any() else num_rows]
    last = terminated | flags(columns.truncated)
    if columns.truncated is None:
        if episode_length is None and not terminated.any():
            raise DatasetError(
                f"{path}: nothing says where its episodes end: expected a column of timeouts, or terminals that are "
                "sometimes set; name it in a column map (truncated: NAME), or give the setting episode_length"
            )
        if episode_length is not None:
            since = 0
            for row in range(num_rows):
                since += 1
                last[row] |= since == episode_length
                since = 0 if last[row] else since
    ends = [int(row) + 1 for row in np.flatnonzero(last)]
    if not ends or ends[-1] < num_rows:
        ends.append(num_rows)
    return terminated, ends


def _count_rows(group: h5py.Group, columns: ColumnMap, path: str) -> tuple[int, int]:
    """Rows of actions T, and rows of observations, which may be T + 1 in an episode's own group.

    Raises:
        DatasetError: another column has a different number of rows.
    """
    where = f"{path}:{group.name.strip('/')}" if columns.episode_group else path
    named = (columns.action, columns.reward, columns.terminated, columns.truncated, columns.success)
    allowed_one_more = columns.observation if columns.episode_group else ()
    num_rows, stored = -1, -1
    for key in [k for k in named if k is not None] + [*columns.observation, *columns.next_observation]:
        if key not in group:
            raise DatasetError(f"{where}: has no column {key!r}, which the first episode has; add or remove it")
        _check_numbers(group[key], f"{where}: column {key!r}")
        rows = len(group[key])
        if num_rows < 0:
            num_rows = rows
        if rows != num_rows and not (key in allowed_one_more and rows == num_rows + 1):
            raise DatasetError(
                f"{where}: column {key!r} has {rows} rows, {columns.action!r} has {num_rows}; expected one per "
                "transition. The file is misaligned or was cut short: write it again"
            )
        if key in columns.observation:
            stored = rows if stored < 0 else min(stored, rows)
    return num_rows, stored


def _check_numbers(column: h5py.Dataset, where: str) -> None:
    """Raise a DatasetError unless there is a number, or several, in every row, and the file can hold them."""
    check_size(column)
    if column.ndim and column.dtype.kind in "biuf":
        return
    found = "one value for the whole episode" if column.ndim == 0 else f"text or records ({column.dtype})"
    raise DatasetError(
        f"{where} holds {found}; expected numbers, one row per transition. Write it so, or leave it out and name the "
        "columns to read in a column map"
    )


def _width(dataset: h5py.Dataset) -> int:
    """Numbers per row."""
    return int(np.prod(dataset.shape[1:]))


def _column_names(group: h5py.Group, keys: tuple[str, ...]) -> list[str]:
    return [f"{key}[{index}]" for key in keys for index in range(_width(group[key]))]


def _joined(group: h5py.Group, keys: tuple[str, ...], start: int, stop: int) -> np.ndarray:
    """[stop - start, numbers per row] float32."""
    return np.concatenate([as_float32(group[key][start:stop].reshape(stop - start, -1)) for key in keys], axis=1)
