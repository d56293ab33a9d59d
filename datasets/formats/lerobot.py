"""LeRobotDataset v2 and v3: a folder with meta/info.json and Parquet files of frames; videos are not read.

    meta/info.json                           codebase_version, total_frames, total_tasks, features by column
    data/chunk-000/episode_000000.parquet    v2.0, v2.1: a file per episode
    data/chunk-000/file-000.parquet          v3.0: many episodes per file

A row is a frame: observation.state, action, episode_index and, where the data has them, next.reward, next.done and
next.success. LeRobot's recorder sets `next.done` at the last frame of every episode, however it ended: it counts as
termination only in datasets where other episodes end without it. The observation after the last frame is not stored.

Source: lerobot 0.4, `datasets/utils.py` and `datasets/lerobot_dataset.py`; the layout of v2.1 as in 0.3.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...pipeline.errors import DatasetError
from ...pipeline.reading import read_json, reading
from .columns import ColumnMap
from .parquet import parquet_columns
from .table import ArrayGroup, Group
from .table_reader import TableFormat

_INFO = "meta/info.json"
_STATE = ("observation.state", "observation.environment_state")
_REMEDY = "download the dataset again"


class LeRobotFormat(TableFormat):
    """Folders with meta/info.json, or with data files of LeRobot's."""

    name = "lerobot"

    @staticmethod
    def detect(source: str, path: Path) -> bool:
        return path.is_dir() and ((path / _INFO).is_file() or bool(_data_files(path)))

    @staticmethod
    def files(source: str, path: Path) -> list[Path]:
        return [path / _INFO, *_data_files(path)]

    @staticmethod
    @contextlib.contextmanager
    def open_file(path: Path) -> Iterator[Group]:
        files = _data_files(path)
        if not (path / _INFO).is_file():
            raise DatasetError(
                f"{path}: has data files of a LeRobot dataset but no {_INFO}, which describes their columns; {_REMEDY}"
            )
        with reading(path, DatasetError, _REMEDY):
            info = read_json(path / _INFO, DatasetError, _REMEDY)
            version = str(info.get("codebase_version"))
            if not version.startswith(("v2", "v3")):
                raise DatasetError(
                    f"{path}: is a LeRobot dataset of version {version}; expected v2.0, v2.1 or v3.0. Convert it with "
                    "LeRobot's own scripts"
                )
            if not files:
                raise DatasetError(
                    f"{path}: has no data/chunk-000/*.parquet, only {_INFO}; download the whole dataset; videos "
                    "are not needed"
                )
            columns = parquet_columns(files)
            group = ArrayGroup(
                str(path), columns, attrs={"features": info["features"]}, labels=_labels(info["features"])
            )
            group.warnings += _said(info, group)
            yield group

    @staticmethod
    def recognise(file: Group) -> tuple[ColumnMap, list[str]]:
        names, said = file.columns(), []
        observation = tuple(name for name in _STATE if name in names)
        features: Mapping[str, Any] = file.attrs["features"]
        offered = [name for name in features if name.startswith("observation") and name not in observation]
        if not observation:
            found = ", ".join(f"{name} ({features[name].get('dtype')})" for name in offered) or "no observation at all"
            raise DatasetError(
                f"{file.filename}: no state column: expected {_STATE[0]} or {_STATE[1]}, found {found}. Learning from "
                "pixels is not supported; name columns of numbers in a column map (observation: [NAME, ...])"
            )
        if unread := [name for name in offered if features[name].get("dtype") not in ("image", "video", "string")]:
            said.append(
                f"observation columns that are not read: {', '.join(unread)}; list them with the others in a "
                "column map if the policy will observe them"
            )

        def if_there(name: str) -> str | None:
            return name if name in names else None

        columns = ColumnMap(
            observation=observation,
            action="action",
            reward=if_there("next.reward"),
            success=if_there("next.success"),
            terminated=if_there("next.terminated"),
            truncated=if_there("next.truncated"),
            done="next.done" if "next.done" in names and not _marks_every_end(file) else None,
            episode="episode_index",
            next_observation=(),
        )
        return columns, said


def _data_files(path: Path) -> list[Path]:
    return sorted(path.glob("data/chunk-*/*.parquet"))


def _marks_every_end(file: Group) -> bool:
    """Whether next.done is set at the last frame of every episode."""
    if "episode_index" not in file:
        return True
    episode = np.asarray(file["episode_index"][:]).reshape(-1)
    last = np.append(episode[1:] != episode[:-1], True)
    return bool((np.asarray(file["next.done"][:]).reshape(-1)[last] > 0).all())


def _labels(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of the numbers of each column; LeRobot has them as a list, or as lists by kind."""
    found = {}
    for column, feature in features.items():
        names = feature.get("names")
        if isinstance(names, Mapping):
            names = [name for part in names.values() for name in (part if isinstance(part, list) else [part])]
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            found[column] = names
    return found


def _said(info: Mapping[str, Any], group: ArrayGroup) -> list[str]:
    said = []
    num_rows, stated = len(group["episode_index"]) if "episode_index" in group else 0, info.get("total_frames")
    if num_rows and stated not in (None, num_rows):
        said.append(f"{_INFO} states {stated:,} frames, the data files hold {num_rows:,}; some are missing")
    if (tasks := info.get("total_tasks") or 1) > 1:
        said.append(
            f"the dataset has {tasks:,} tasks (task_index), which are packed as one: their episodes have different "
            "goals, which no column of the observation states"
        )
    return said
