"""Files of columns as episodes: flat in D4RL's style, one group per episode in robomimic's, others by a column map.

`columns.py` decides where the parts of a transition are, `episode_ends.py` where episodes end, `spans.py` which rows
are an episode's, and each format how its files are opened.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...pipeline.errors import DatasetError
from ...pipeline.paths import user_path
from ..actions import ActionExtent, ActionScale, Choices, read_actions
from ..schema import Behaviour, Episode, TaskSpec
from ..spaces import flat_parts, order_parts
from ..task_from_data import limit_warnings, split_overrides, success_flags
from ..tasks import recorded_in
from .columns import ColumnMap, detect_columns
from .episode_ends import as_flags
from .format import Format
from .spans import Span, find_spans, joined, looks_shifted, width_of
from .table import ArrayGroup, Group, Table, table_of

_CHUNK = 65536
"""Rows of actions that are looked at together when fitting their scale."""

_FINAL_NOT_STORED = (
    "not stored: truncated episodes lose their last transition; terminated episodes repeat their last "
    "observation as the terminal one"
)

_SHIFTED = (
    "treated as shifted: the first row of every episode has neither action nor reward, so each row holds the "
    "action and reward that led to its observation; check with `orrery inspect`, and set shifted: true or false in a "
    "column map"
)
_LOOKS_SHIFTED = (
    "the first row of every episode has neither action nor reward: if a row holds the action and reward that led to "
    "its observation, set shifted: true in a column map; `orrery inspect` shows which reward follows which action"
)

NO_REWARD = (
    "no column of rewards: every reward is 0, and only imitation of the data learns a policy (algorithms=[bc]). Name "
    "the column in a column map (reward: NAME) if there is one"
)


class TableFormat(Format):
    """A format whose files are columns: how they are opened, and which of them are the parts of a transition."""

    name: ClassVar[str]
    """First part of the name of a task that has none."""
    has_columns = True

    @staticmethod
    def files(source: str, path: Path) -> list[Path]:
        return [path]

    @staticmethod
    @abstractmethod
    def open_file(path: Path) -> AbstractContextManager[Group]:
        """The open file. Raises DatasetError: it cannot be read."""

    @staticmethod
    def recognise(file: Group) -> tuple[ColumnMap, list[str]]:
        """The columns of a file for which there is no column map, and what to warn of.

        Raises:
            DatasetError: a part is missing.
        """
        return detect_columns(file), []

    @classmethod
    def task_name(cls, source: str, path: Path) -> str:
        return f"{cls.name}/{path.name if path.is_dir() else path.stem}"

    @classmethod
    def open(cls, source: str, path: Path, *, name: str | None = None, **settings: Any) -> TableReader:
        return TableReader(
            path,
            kind=cls.name,
            open_file=cls.open_file,
            recognise=cls.recognise,
            name=name or cls.task_name(source, path),
            **settings,
        )


class TableReader:
    """A file of columns as an EpisodeReader.

    Without next observations, an episode that was cut off loses its last transition, because where that led was not
    stored. One that terminated keeps it, for the sake of its reward and the termination itself: the last observation
    stands in for the terminal one, from which nothing is bootstrapped. `source["final_observation"]` says so.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        kind: str,
        open_file: Callable[[Path], AbstractContextManager[Group]],
        recognise: Callable[[Group], tuple[ColumnMap, list[str]]],
        name: str,
        columns: ColumnMap | Mapping[str, Any] | str | Path | None = None,
        behaviour: Behaviour | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        """Open a file and find its episodes.

        Args:
            path: the file, or the folder of several.
            kind: name of the format.
            open_file: opens it.
            recognise: the column map of an open file, and what to warn of.
            name: of the task.
            columns: where things are, as a ColumnMap, a mapping of its fields, or a YAML file of them; None to
                recognise them.
            behaviour: how the data was made; default `unknown`.
            overrides: fields of TaskSpec that the file cannot tell (episode_length, score_random, ...; `environment` as
                `recorded_in` takes it), `action_low` with `action_high`, the native bounds of its actions, and
                `choices_start`, the number of the first choice.

        Raises:
            TaskError: the environment that is named cannot be built, or is not one that the file was recorded in.
            DatasetError: the file is missing or damaged, a column is missing, or no end of an episode can be found.
        """
        self._path, self._open = user_path(path), open_file
        fields, settings = split_overrides(overrides, str(self._path))
        named = fields.pop("environment", None)
        environment = recorded_in(named) if named else None
        with self._open(self._path) as file:
            given, said = recognise(file) if columns is None else (ColumnMap.load(columns), [])
            groups, others = given.groups(file)
            self._columns = given.resolve(file, groups[0])
            self._spans, self.warnings = find_spans(file, groups, self._columns, fields.get("episode_length"))
            self.warnings += said
            if isinstance(file, ArrayGroup):
                self.warnings += file.warnings
            if self._columns.reward is None:
                self.warnings.append(NO_REWARD)
            if given.next_observation is None:
                self.warnings += self._columns.left_out(file[groups[0]])
            if others:
                self.warnings.append(
                    f"groups without {given.action!r} are skipped ({len(others)}): {', '.join(others[:8])}"
                )
            if looks_shifted(file, self._columns, self._spans):
                # Dreamer's records and RLDS's have the same names for the marks of their ends.
                if columns is None and self._columns.final_row:
                    self._columns = dataclasses.replace(self._columns, shifted=True)
                self.warnings.append(_SHIFTED if self._columns.shifted else _LOOKS_SHIFTED)
            first = file[self._spans[0].group]
            if environment is not None:
                parts = [(key, width_of(first[key])) for key in self._columns.observation]
                order, said = order_parts(parts, flat_parts(environment.observation_space))
                self._columns = self._columns.reorder(order)
                self.warnings += said
            names = _column_names(first, self._columns.observation)
            width = width_of(first[self._columns.action])
            self._actions, said = read_actions(
                ActionExtent.of(self._action_chunks(file, groups, width), width),
                fields,
                settings,
                None if environment is None else environment.action_space,
                str(self._path),
            )
            self.warnings += said
        action_dim = self._actions.count if isinstance(self._actions, Choices) else width
        longest = max(len(span) for span in self._spans)
        derived: dict[str, Any] = {
            "name": name,
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
            "format": kind,
            "path": str(self._path.resolve() if self._path.exists() else self._path),
            "layout": self._columns.to_dict(),
            "columns": names,
            "actions": self._actions.describe(),
            "final_observation": "stored" if final_stored else _FINAL_NOT_STORED,
        }
        if (len(names), action_dim) != (self.task.observation_dim, self.task.action_dim):
            raise DatasetError(
                f"{self._path}: the settings say observation_dim {self.task.observation_dim} and action_dim "
                f"{self.task.action_dim}, the file has {len(names)} and {action_dim}; correct or remove those settings"
            )

    def __len__(self) -> int:
        return len(self._spans)

    def __iter__(self) -> Iterator[Episode]:
        with self._open(self._path) as file:
            name, columns = "", None
            for index, span in enumerate(self._spans):
                if columns is None or span.group != name:
                    name, columns = span.group, table_of(file[span.group])
                yield self._read(columns, span, f"{self._path}:{self._place(index, span)}")

    def _place(self, index: int, span: Span) -> str:
        if self._columns.episode_group is None:
            return f"episode {index} (from row {span.start})"
        return span.group.strip("/") + (f" (from row {span.start})" if span.start else "")

    def _read(self, columns: Table, span: Span, label: str) -> Episode:
        names = self._columns
        observations = joined(columns, names.observation, span.start, span.stop + (span.final in ("row", "shortened")))
        if span.final == "next":
            final = joined(columns, names.next_observation or (), span.stop - 1, span.stop)
            observations = np.concatenate([observations, final])
        elif span.final == "repeat":
            observations = np.concatenate([observations, observations[-1:]])
        rows = (span.start + names.shifted, span.stop + names.shifted)
        actions = columns.rows(names.action, *rows)
        if isinstance(self._actions, Choices):
            actions = self._actions(actions, label)
        else:
            actions = self._actions(actions.reshape(len(span), -1))
        success = None
        if self.task.reports_success and names.success is not None:
            flags = as_flags(columns.rows(names.success, *rows).reshape(-1), f"{label}: {names.success!r}", rows[0])
            success = success_flags(flags, len(span), label)
        if names.reward is None:
            rewards = np.zeros(len(span), np.float32)
        else:
            rewards = joined(columns, (names.reward,), *rows).reshape(-1)
        return Episode(observations, actions, rewards, span.terminated, success, label)

    def _action_chunks(self, file: Group, groups: Sequence[str], width: int) -> Iterator[np.ndarray]:
        """All actions, without those that shifted rows hold in front of an episode: they were never taken."""
        taken: dict[str, list[tuple[int, int]]] = {}
        for span in self._spans if self._columns.shifted else ():
            taken.setdefault(span.group, []).append((span.start + 1, span.stop + 1))
        for group in groups:
            columns = table_of(file[group])
            actions = columns[self._columns.action]
            if width_of(actions) != width:
                raise DatasetError(
                    f"{self._path}:{group.strip('/')}: actions have {width_of(actions)} components, those of the first "
                    f"episode have {width}; remove episodes of other tasks"
                )
            chunks = [(start, start + _CHUNK) for start in range(0, len(actions), _CHUNK)]
            for rows in taken.get(group, []) if self._columns.shifted else chunks:
                yield columns.rows(self._columns.action, *rows).reshape(-1, width)


def _column_names(group: Group, keys: tuple[str, ...]) -> list[str]:
    labels = group.labels if isinstance(group, ArrayGroup) else {}
    widths = {key: width_of(group[key]) for key in keys}
    return [
        f"{key}.{labels[key][index]}" if len(labels.get(key, ())) == width else f"{key}[{index}]"
        for key, width in widths.items()
        for index in range(width)
    ]
