"""Minari datasets as episodes: any dataset whose observations can be flattened, with or without a task of ours in it.

Decides how a dataset is found, what its TaskSpec is where it carries none, and how its spaces become flat float32
observations and actions in [-1, 1]. Nothing is ever downloaded.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium.spaces as gs
import numpy as np

from ..pipeline.errors import DatasetError, TaskError
from ..pipeline.paths import user_path
from .schema import Behaviour, Episode, TaskSpec
from .spaces import Space, flat_columns, flat_dim, flatten_observation
from .task_from_data import (
    ActionScale,
    as_float32,
    fit_action_scale,
    one_hot,
    scale_from_bounds,
    split_overrides,
    success_flags,
)

if TYPE_CHECKING:
    from minari.dataset.minari_storage import MinariStorage

TASK_KEY = "orrery_task"
"""Metadata entry that holds our TaskSpec as a JSON string."""
BEHAVIOUR_KEY = "orrery_behaviour"
"""Metadata entry that says how the data was made; a Behaviour."""


class MinariReader:
    """A Minari dataset as an EpisodeReader.

    Opening it reads only its metadata. The task of a dataset that carries none is found by reading every episode, when
    `task` is first asked for. An episode that goes on after a termination, as in some environments, is cut there.
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
            name: of the task; default `minari/<id>`, or that of the task stored with the dataset.
            behaviour: how the data was made; default as stored with the dataset, else `unknown`.
            overrides: fields of TaskSpec, and `action_low` with `action_high`, that replace what the dataset says.

        Raises:
            DatasetError: not found, not readable, or its spaces are not ones that a task can have.
        """
        self._folder = find_minari(dataset)
        self._storage = _open_storage(self._folder)
        self._metadata = json.loads((self._folder / "data" / "metadata.json").read_text())
        self._id = str(self._metadata.get("dataset_id", self._folder.name))
        self._observation_space: Space = self._storage.observation_space
        self._action_space: Space = self._storage.action_space
        _refuse_images(self._observation_space, self._id)
        try:
            self._columns = flat_columns(self._observation_space)
        except TaskError as error:
            raise DatasetError(f"Minari dataset {self._id}: {error}") from error
        _refuse_actions(self._action_space, self._id)
        self._fields, self._bounds = split_overrides(overrides, f"Minari dataset {self._id}")
        if name is not None:
            self._fields["name"] = name
        self.behaviour: Behaviour = behaviour or self._metadata.get(BEHAVIOUR_KEY, "unknown")

    @cached_property
    def task(self) -> TaskSpec:
        """The stored task, or the one that the data shows; either with the caller's settings over it.

        Raises:
            DatasetError: its dimensions are not those of the dataset, or an episode cannot be read.
        """
        stored = self._metadata.get(TASK_KEY)
        values = (self._described if stored is None else json.loads(stored)) | self._fields
        if self._scale and values.get("environment"):
            values["environment"] = {**values["environment"], **self._scale.environment_bounds()}
        task = TaskSpec.from_dict(values)
        if (task.observation_dim, task.action_dim) != (len(self._columns), self._action_dim):
            raise DatasetError(
                f"Minari dataset {self._id}: task {task.name!r} says observation_dim {task.observation_dim} and "
                f"action_dim {task.action_dim}, the dataset's spaces give {len(self._columns)} and "
                f"{self._action_dim}; correct the task that was given or stored with it"
            )
        return task

    @cached_property
    def source(self) -> Mapping[str, Any]:
        return {
            "format": "minari",
            "id": self._id,
            "path": str(self._folder.resolve()),
            "columns": self._columns,
            "actions": self._scale.to_dict() if self._scale else "one-hot",
            "ends": "an episode ends at its first termination; what follows is left out",
        }

    def __len__(self) -> int:
        return int(self._storage.total_episodes)

    def __iter__(self) -> Iterator[Episode]:
        for index, raw in enumerate(self._raw_episodes()):
            yield self._convert(raw, f"{self._id}:episode_{index}")

    def _raw_episodes(self) -> Iterator[dict[str, Any]]:
        """Minari's own dicts in order, with its and h5py's errors turned into ours."""
        episodes = iter(self._storage.get_episodes(range(len(self))))
        for index in range(len(self)):
            try:
                yield next(episodes)
            except (OSError, KeyError, ValueError, AssertionError, StopIteration) as error:
                raise DatasetError(
                    f"{self._storage.data_path}: episode {index} of {len(self)} cannot be read ({error!r}); "
                    f"the dataset is damaged or incomplete, fetch or write it again"
                ) from error

    def _convert(self, raw: Mapping[str, Any], label: str) -> Episode:
        try:
            observations = flatten_observation(self._observation_space, raw["observations"])
        except (TaskError, KeyError) as error:
            raise DatasetError(f"{label}: {error}") from error
        actions = self._flat_actions(raw, label)
        length = len(actions)
        if self._scale:
            actions = self._scale(actions)
        success = None
        if self.task.reports_success:
            if "success" not in (raw["infos"] or {}):
                raise DatasetError(
                    f"{label}: infos have no 'success', which task {self.task.name!r} reports; "
                    f"give the setting reports_success: false, or remove the episode"
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
        """[T, A], one-hot or in native units."""
        actions = np.asarray(raw["actions"])
        if isinstance(self._action_space, gs.Discrete):
            return one_hot(actions, int(self._action_space.start), self._action_dim, label)
        if actions.size != len(actions) * self._action_dim:
            raise DatasetError(f"{label}: actions have shape {actions.shape}, but the space is {self._action_space}")
        return actions.reshape(len(actions), self._action_dim)

    @cached_property
    def _scale(self) -> ActionScale | None:
        """How actions are scaled; None where they are discrete."""
        space = self._action_space
        if not isinstance(space, gs.Box):
            return None
        if self._bounds:
            return scale_from_bounds(self._bounds, self._action_dim, f"Minari dataset {self._id}")
        chunks = (self._flat_actions(raw, f"{self._id}:episode_{i}") for i, raw in enumerate(self._raw_episodes()))
        return fit_action_scale(space.low.reshape(-1), space.high.reshape(-1), chunks)

    @property
    def _action_dim(self) -> int:
        return flat_dim(self._action_space)

    @cached_property
    def _described(self) -> dict[str, Any]:
        """Fields of a TaskSpec as the data shows them; reads every episode."""
        longest, terminates, reports_success = 1, False, len(self) > 0
        for raw in self._raw_episodes():
            longest = max(longest, _first_termination(raw))
            terminates = terminates or bool(np.any(raw["terminations"]))
            reports_success = reports_success and "success" in (raw["infos"] or {})
        spec = _environment_spec(self._metadata)
        return {
            "name": f"minari/{self._id}",
            "observation_dim": len(self._columns),
            "action_dim": self._action_dim,
            "action_kind": "continuous" if isinstance(self._action_space, gs.Box) else "discrete",
            "episode_length": (spec or {}).get("max_episode_steps") or longest,
            "terminates": terminates,
            "reports_success": reports_success,
            "score_kind": "normalised",
            "score_random": self._metadata.get("ref_min_score"),
            "score_expert": self._metadata.get("ref_max_score"),
            "environment": {"kind": "gymnasium", "spec_json": json.dumps(spec)} if spec else {},
        }


def minari_root() -> Path:
    """Where Minari keeps its datasets: `MINARI_DATASETS_PATH`, else `~/.minari/datasets`."""
    # Minari's own get_dataset_path also creates the folder, which reading should not do.
    given = os.environ.get("MINARI_DATASETS_PATH")
    return user_path(given) if given else Path.home() / ".minari" / "datasets"


def is_minari_folder(folder: Path) -> bool:
    return (folder / "data" / "metadata.json").is_file()


def find_minari(dataset: str | Path) -> Path:
    """The folder of a dataset given by id, by folder, or by the `data` folder inside it.

    Raises:
        DatasetError: there is none; names the nearest ids that are there, and how to fetch one.
    """
    given = user_path(dataset)
    if given.name == "data" and is_minari_folder(given.parent):
        given = given.parent
    for folder in (given, minari_root() / dataset):
        if is_minari_folder(folder):
            return folder
    root = minari_root()
    local = sorted(path.parents[1].relative_to(root).as_posix() for path in root.glob("**/data/metadata.json"))
    nearest = difflib.get_close_matches(str(dataset), local, n=3, cutoff=0.3)
    hint = f"nearest there: {', '.join(nearest)}" if nearest else f"{len(local)} datasets there, none of a similar name"
    raise DatasetError(
        f"no Minari dataset {str(dataset)!r}: expected a folder with data/metadata.json, or an id under {root} "
        f"({hint}). To fetch a published one: minari download {dataset}; data for a simulated task comes from the "
        "collect stage"
    )


def _open_storage(folder: Path) -> MinariStorage:
    # The storage, not MinariDataset: that one refuses a dataset for an environment spec it cannot parse, though the
    # data needs none.
    from minari.dataset.minari_storage import MinariStorage

    try:
        return MinariStorage.read(folder / "data")
    except ImportError as error:
        raise DatasetError(f"{folder}: {error}") from error
    except (ValueError, KeyError, AssertionError, OSError) as error:
        raise DatasetError(
            f"{folder}: cannot be opened as a Minari dataset ({error!r}); it is damaged or of an unsupported version, "
            "fetch or write it again"
        ) from error


def _refuse_images(space: Space, dataset_id: str, where: str = "observation") -> None:
    if isinstance(space, gs.Dict | gs.Tuple):
        parts = space.spaces.items() if isinstance(space, gs.Dict) else enumerate(space.spaces)
        for key, child in parts:
            _refuse_images(child, dataset_id, f"{where}.{key}")
    elif len(space.shape or ()) >= 3:
        raise DatasetError(
            f"Minari dataset {dataset_id}: {where} has shape {space.shape}, which looks like images; expected vectors. "
            "Learning from pixels is not supported: convert the dataset to state observations"
        )


def _refuse_actions(space: Space, dataset_id: str) -> None:
    if not isinstance(space, gs.Box | gs.Discrete):
        raise DatasetError(
            f"Minari dataset {dataset_id}: actions are {space}, expected Box or Discrete; convert the dataset so "
            "that each action is one vector of numbers or one choice"
        )


def _first_termination(raw: Mapping[str, Any]) -> int:
    """Decisions up to and including the first termination; all of them if there is none."""
    terminations = np.asarray(raw["terminations"])
    found = np.flatnonzero(terminations)
    return int(found[0]) + 1 if found.size else len(terminations)


def _environment_spec(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """The gymnasium EnvSpec as a dict, preferring the one meant for evaluation; None if it cannot be recovered."""
    from gymnasium.envs.registration import EnvSpec

    text = metadata.get("eval_env_spec") or metadata.get("env_spec")
    if text is None:
        return None
    try:
        values = json.loads(text)
        # Fields of older gymnasium versions, which today's EnvSpec refuses.
        for old in ("apply_api_compatibility", "autoreset"):
            values.pop(old, None)
        return dict(json.loads(EnvSpec.from_json(json.dumps(values)).to_json()))
    except (ValueError, KeyError, TypeError):
        return None
