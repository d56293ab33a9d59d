"""Minari datasets as episodes: any dataset whose observations can be flattened, with or without a task of ours in it.

Decides what the TaskSpec of a dataset is where it carries none, and how its spaces become flat float32 observations and
actions in [-1, 1]; `minari_folder.py` decides where it is. Nothing is ever downloaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium.spaces as gs
import h5py
import numpy as np

from ...pipeline.errors import DatasetError, OrreryError, TaskError
from ...pipeline.reading import read_json, reading
from ..actions import (
    ACTION_BOUNDS,
    CHOICES_START,
    ActionExtent,
    ActionScale,
    Choices,
    action_bounds,
    check_action_space,
    fit_action_scale,
    scale_from_bounds,
    scale_in_environment,
)
from ..schema import Behaviour, Episode, TaskSpec
from ..spaces import (
    Space,
    as_float32,
    flat_columns,
    flat_dim,
    flat_parts,
    flatten_observation,
    looks_like_images,
    order_parts,
)
from ..task_from_data import limit_warnings, split_overrides, success_flags
from ..tasks import recorded_in
from .format import Format
from .hdf5_file import is_hdf5
from .minari_folder import (
    check_episodes,
    check_sizes,
    environment_spec,
    find_minari,
    id_of,
    is_minari_folder,
    open_storage,
    time_limit,
)

TASK_KEY = "orrery_task"
"""Metadata entry that holds our TaskSpec as a JSON string."""
BEHAVIOUR_KEY = "orrery_behaviour"
"""Metadata entry that says how the data was made; a Behaviour."""


class MinariFormat(Format):
    """Folders of Minari datasets, the data file in one, and Minari ids; `minari/<id>` is what the task is called."""

    @staticmethod
    def detect(source: str, path: Path) -> bool:
        if path.is_file():
            return is_hdf5(path) and is_minari_folder(path.parent.parent)
        if path.is_dir():
            return is_minari_folder(path) or is_minari_folder(path.parent)
        return source.startswith("minari/") or re.search(r"-v\d+$", source) is not None

    @staticmethod
    def task_name(source: str, path: Path) -> str:
        return MinariReader(_folder(source, path)).name

    @staticmethod
    def files(source: str, path: Path) -> list[Path]:
        return sorted(file for file in (_folder(source, path) / "data").iterdir() if file.is_file())

    @staticmethod
    def open(source: str, path: Path, *, columns: None, **settings: Any) -> MinariReader:
        return MinariReader(_folder(source, path), **settings)


def _folder(source: str, path: Path) -> Path:
    if path.is_file():
        return path.parent.parent
    return find_minari(path if path.is_dir() else source.removeprefix("minari/"))


class MinariReader:
    """A Minari dataset as an EpisodeReader.

    Opening it reads only its metadata. The task of a dataset that carries none is found by reading every episode, when
    `task` is first asked for. An episode that continues after a termination, as in some environments, is cut there.
    """

    def __init__(
        self,
        dataset: str | Path,
        *,
        name: str | None = None,
        behaviour: Behaviour | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        """Open a dataset by its id, under `minari_root()`, or by its folder.

        Args:
            dataset: `mujoco/hopper/medium-v0`, or a folder that holds `data/metadata.json`.
            name: of the task; default `minari/<id>` with the id that was given, or that of the task stored with the
                dataset.
            behaviour: how the data was made; default as stored with the dataset, else `unknown`.
            overrides: fields of TaskSpec (`environment` as `recorded_in` takes it), and `action_low` with
                `action_high`, that replace what the dataset says.

        Raises:
            TaskError: the environment that is named cannot be built, or is not one that the data was recorded in.
            DatasetError: not found, not readable, or its spaces are not ones that a task can have.
        """
        self._folder = find_minari(dataset)
        with self._reading():
            self._open(name, behaviour, overrides)

    def _reading(self) -> AbstractContextManager[None]:
        return reading(self._folder, DatasetError, "download or write it again")

    def _open(self, name: str | None, behaviour: Behaviour | None, overrides: Mapping[str, Any] | None) -> None:
        self._storage = open_storage(self._folder)
        self._metadata = read_json(self._folder / "data" / "metadata.json", DatasetError)
        self._id = id_of(self._folder, str(self._metadata.get("dataset_id", self._folder.name)))
        self._observation_space: Space = self._storage.observation_space
        self._action_space: Space = self._storage.action_space
        self._refuse_images(self._observation_space)
        try:
            self._columns = flat_columns(self._observation_space)
        except TaskError as error:
            raise DatasetError(f"Minari dataset {self._id}: {error}") from error
        self._fields, self._settings = split_overrides(overrides, f"Minari dataset {self._id}")
        self._check_actions()
        self._said = check_episodes(self._folder, len(self))
        named = self._fields.pop("environment", None)
        self._environment = recorded_in(named) if named else None
        self._order: list[int] | None = None
        """Positions of the columns in the order of the environment that the user names."""
        if self._environment is not None:
            self._order_columns(self._environment.observation_space)
            kind = "continuous" if isinstance(self._action_space, gs.Box) else "discrete"
            check_action_space(self._environment.action_space, kind, self._action_dim)
        self.name: str = (
            name or self._fields.pop("name", None) or (self._stored or {}).get("name", f"minari/{self._id}")
        )
        self.behaviour: Behaviour = behaviour or self._metadata.get(BEHAVIOUR_KEY, "unknown")

    @cached_property
    def task(self) -> TaskSpec:
        """The stored task, or the one that the data shows; either with the caller's settings over it.

        Raises:
            DatasetError: its dimensions are not those of the dataset, or an episode cannot be read.
        """
        with self._reading():
            return self._find_task()

    def _find_task(self) -> TaskSpec:
        values = self._described if self._stored is None else dict(self._stored)
        if self._environment is not None:
            values |= self._environment.fields
        scale = self._actions[0]
        scaled_here = self._stored is None or all(key in self._settings for key in ACTION_BOUNDS)
        if isinstance(scale, ActionScale) and scaled_here and values.get("environment"):
            values["environment"] = {**values["environment"], **scale.environment_bounds()}
        task = TaskSpec.from_dict(values | self._fields | {"name": self.name})
        if (task.observation_dim, task.action_dim) != (len(self._columns), self._action_dim):
            raise DatasetError(
                f"Minari dataset {self._id}: task {task.name!r} says observation_dim {task.observation_dim} and "
                f"action_dim {task.action_dim}, the dataset's spaces give {len(self._columns)} and "
                f"{self._action_dim}; correct the given or stored task"
            )
        return task

    @cached_property
    def warnings(self) -> list[str]:
        """May read every episode, as `task` does."""
        with self._reading():
            said = [*self._said, *self._actions[1]]
            if self._environment is not None:
                said += limit_warnings(self._environment.fields, self._fields, self._seen.longest)
            return said

    @cached_property
    def source(self) -> Mapping[str, Any]:
        return {
            "format": "minari",
            "id": self._id,
            "path": str(self._folder.resolve()),
            "columns": self._columns,
            "actions": self._actions[0].describe(),
            "ends": "an episode ends at its first termination; later steps are dropped",
        }

    def __len__(self) -> int:
        return int(self._storage.total_episodes)

    def __iter__(self) -> Iterator[Episode]:
        with self._reading():
            for index, raw in enumerate(self._raw_episodes()):
                yield self._convert(raw, f"{self._id}:episode_{index}")

    def _raw_episodes(self) -> Iterator[dict[str, Any]]:
        """Minari's own dicts in order, with its and h5py's errors turned into ours."""
        episodes = iter(self._storage.get_episodes(range(len(self))))
        path = self._folder / "data" / "main_data.hdf5"
        opened = reading(path, DatasetError, "download or write it again")
        with opened, h5py.File(path) if path.is_file() else nullcontext() as file:
            for index in range(len(self)):
                try:
                    if file is not None:
                        check_sizes(file, f"episode_{index}")
                    yield next(episodes)
                except OrreryError:
                    raise
                except Exception as error:  # a damaged file fails in as many ways as there are bytes
                    raise DatasetError(
                        f"{self._storage.data_path}: episode {index} of {len(self)} cannot be read ({error!r}); "
                        f"the dataset is damaged or incomplete, download or write it again"
                    ) from error

    def _convert(self, raw: Mapping[str, Any], label: str) -> Episode:
        try:
            observations = flatten_observation(self._observation_space, raw["observations"])
        except (TaskError, KeyError) as error:
            raise DatasetError(f"{label}: {error}") from error
        if self._order is not None:
            observations = observations[:, self._order]
        recorded, (convert, _) = self._flat_actions(raw, label), self._actions
        actions = convert(recorded, label) if isinstance(convert, Choices) else convert(recorded)
        length = len(actions)
        success = None
        if self.task.reports_success:
            if "success" not in (raw["infos"] or {}):
                raise DatasetError(
                    f"{label}: infos have no 'success', which task {self.task.name!r} reports; "
                    f"set reports_success: false, or remove the episode"
                )
            success = success_flags(raw["infos"]["success"], length, label)
        rewards = as_float32(np.asarray(raw["rewards"])).reshape(-1)
        if len(raw["terminations"]) != length:
            raise DatasetError(
                f"{label}: {len(raw['terminations'])} terminations for {length} actions; expected one per action. "
                "Correct or remove that episode"
            )
        end = _first_termination(raw)
        if end < length:
            observations, actions, rewards = observations[: end + 1], actions[:end], rewards[:end]
            success = None if success is None else success[:end]
        return Episode(observations, actions, rewards, bool(raw["terminations"][end - 1 :].any()), success, label)

    def _flat_actions(self, raw: Mapping[str, Any], label: str) -> np.ndarray:
        """As recorded: [T, A] in native units, or [T] numbers of choices."""
        actions = np.asarray(raw["actions"])
        width = 1 if isinstance(self._action_space, gs.Discrete) else self._action_dim
        if actions.size != len(actions) * width:
            raise DatasetError(f"{label}: actions have shape {actions.shape}, but the space is {self._action_space}")
        return actions.reshape(len(actions), width)

    @cached_property
    def _actions(self) -> tuple[ActionScale | Choices, list[str]]:
        """How actions are read, and what to warn of. Reads them where their space does not say, or is not asked."""
        space = self._action_space
        # Actions of a stored task are in [-1, 1] already, whatever the environment's bounds are.
        named = None if self._environment is None or self._stored is not None else self._environment.action_space
        if isinstance(space, gs.Discrete):
            said = []
            if isinstance(named, gs.Discrete) and named.start != space.start:
                said.append(
                    f"the first choice is {space.start} in the data and {named.start} in the environment; they "
                    "are treated as the same"
                )  # fmt: skip
            return Choices(self._action_dim, int(space.start)), said
        low, high = action_bounds(space)
        if all(key in self._settings for key in ACTION_BOUNDS):
            return scale_from_bounds(self._settings, self._action_dim, f"Minari dataset {self._id}", named)
        if named is not None:
            scale, said = scale_in_environment(named, self._extent)
            if not all(map(np.allclose, (low, high), action_bounds(named))):
                said.append(
                    f"the dataset states actions {space}, the environment {named}, which determines the "
                    "scaling"
                )  # fmt: skip
            return scale, said
        if np.isfinite(low).all() and np.isfinite(high).all():
            return ActionScale(low, high, "action space"), []
        return fit_action_scale(low, high, self._extent, "action space"), []

    @property
    def _extent(self) -> ActionExtent:
        episodes = enumerate(self._raw_episodes())
        chunks = (self._flat_actions(raw, f"{self._id}:episode_{index}") for index, raw in episodes)
        return ActionExtent.of(chunks, self._action_dim)

    @property
    def _action_dim(self) -> int:
        return flat_dim(self._action_space)

    @cached_property
    def _stored(self) -> dict[str, Any] | None:
        """The task that was stored with the dataset."""
        stored = self._metadata.get(TASK_KEY)
        return None if stored is None else dict(json.loads(stored))

    @cached_property
    def _seen(self) -> _Seen:
        """Reads every episode."""
        longest, terminates, reports_success = 1, False, len(self) > 0
        for raw in self._raw_episodes():
            longest = max(longest, _first_termination(raw))
            terminates = terminates or bool(np.any(raw["terminations"]))
            reports_success = reports_success and "success" in (raw["infos"] or {})
        return _Seen(longest, terminates, reports_success)

    @cached_property
    def _described(self) -> dict[str, Any]:
        """Fields of a TaskSpec as the data shows them."""
        seen = self._seen
        spec = environment_spec(self._metadata)
        return {
            "observation_dim": len(self._columns),
            "action_dim": self._action_dim,
            "action_kind": "continuous" if isinstance(self._action_space, gs.Box) else "discrete",
            "episode_length": time_limit(spec) or seen.longest,
            "terminates": seen.terminates,
            "reports_success": seen.reports_success,
            "score_kind": "normalised",
            "score_random": self._metadata.get("ref_min_score"),
            "score_expert": self._metadata.get("ref_max_score"),
            "environment": {"kind": "gymnasium", "spec_json": json.dumps(spec)} if spec else {},
        }

    def _order_columns(self, space: Space) -> None:
        """Bring the columns into the order of an environment's observation."""
        parts = flat_parts(self._observation_space)
        order, said = order_parts(parts, flat_parts(space))
        self._said += said
        if order != list(range(len(parts))):
            ends = np.cumsum([width for _, width in parts])
            self._order = [column for part in order for column in range(ends[part] - parts[part][1], ends[part])]
            self._columns = [self._columns[column] for column in self._order]

    def _refuse_images(self, space: Space, where: str = "observation") -> None:
        if isinstance(space, gs.Dict | gs.Tuple):
            for key, child in space.spaces.items() if isinstance(space, gs.Dict) else enumerate(space.spaces):
                self._refuse_images(child, f"{where}.{key}")
        elif looks_like_images(space.shape or (), space.dtype):
            raise DatasetError(
                f"Minari dataset {self._id}: {where} has shape {space.shape}, which looks like images; expected "
                "vectors. Learning from pixels is not supported: convert the dataset to state observations"
            )

    def _check_actions(self) -> None:
        space = self._action_space
        if not isinstance(space, gs.Box | gs.Discrete):
            raise DatasetError(
                f"Minari dataset {self._id}: actions are {space}, expected Box or Discrete; convert the dataset so "
                "that each action is a vector or a discrete action"
            )
        kind = "discrete" if isinstance(space, gs.Discrete) else "continuous"
        foreign = {CHOICES_START, *(ACTION_BOUNDS if kind == "discrete" else ())} & self._settings.keys()
        if self._fields.get("action_kind", kind) != kind:
            foreign |= {"choices" if kind == "continuous" else "action_kind"}
        if foreign:
            raise DatasetError(
                f"Minari dataset {self._id}: actions are {space}, to which {' and '.join(sorted(foreign))} cannot "
                "apply; remove that setting"
            )


@dataclass(frozen=True)
class _Seen:
    """What reading every episode shows."""

    longest: int
    """Steps of the longest episode."""
    terminates: bool
    reports_success: bool


def _first_termination(raw: Mapping[str, Any]) -> int:
    """Steps up to and including the first termination; all of them if there is none."""
    terminations = np.asarray(raw["terminations"])
    found = np.flatnonzero(terminations)
    return int(found[0]) + 1 if found.size else len(terminations)
