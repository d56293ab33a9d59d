"""Tasks and episodes: their fields, time alignment and units. All other modules rely on these definitions.

Time: observations run t = 0..T, actions and rewards t = 0..T-1; reward[t] and terminated[t] follow action[t]. Every
reader converts to this, so no filler rows exist after it.

Step: an environment step, which includes the action repeat. Rewards are summed over the repeat.

Units: observations are flat float32 in the environment's own units; continuous actions are scaled to [-1, 1]; a
discrete action is a one-hot vector.

Dimension letters: T steps of an episode, O observation, A action.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..pipeline.errors import CheckpointError, TaskError
from ..pipeline.reading import read_json, reading

ActionKind = Literal["continuous", "discrete"]
ScoreKind = Literal["return_per_1000", "success", "normalised"]
Behaviour = Literal["exploration", "expert", "policy", "replay", "unknown"]
"""How a dataset was collected. Sets the default behaviour anchor of extraction."""
BEHAVIOURS: tuple[Behaviour, ...] = get_args(Behaviour)


def heuristic_discount(episode_length: int) -> float:
    """Return the discount for episodes of `episode_length` steps: clip((n - 1) / n, 0.95, 0.995), n = length / 5.

    500 steps -> 0.99, 100 -> 0.95. Source: TD-MPC2 (arXiv 2310.16828), appendix.
    """
    fifth = episode_length / 5
    return min(max((fifth - 1) / fifth, 0.95), 0.995)


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def _is_number_or_none(value: Any) -> bool:
    return value is None or (
        isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)
    )


@dataclass(frozen=True)
class TaskSpec:
    """Description of a task. JSON-serialisable."""

    name: str
    """`suite/task`, for example `dmc/walker-run`; unique within a table."""
    observation_dim: int
    action_dim: int
    """Components of a continuous action, or the number of discrete actions."""
    episode_length: int
    """Steps until the time limit."""
    action_kind: ActionKind = "continuous"
    action_repeat: int = 1
    """Simulator steps per step; rewards are summed over them."""
    discount: float | None = None
    """Discount per step. None: `heuristic_discount(episode_length)`."""
    terminates: bool = False
    """Whether an episode can end in a terminal state before the time limit."""
    reports_success: bool = False
    score_kind: ScoreKind = "normalised"
    score_random: float | None = None
    """Return of a uniformly random policy; scores 0."""
    score_expert: float | None = None
    """Return that scores 1; above `score_random`."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `datasets.tasks.make_environment`; empty if no environment is known."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"(?!\.*$)[^\x00-\x1f\\]+", self.name):
            raise TaskError(f"a task name must be text such as suite/task, found {self.name!r:.80}")
        kinds, scores = get_args(ActionKind), get_args(ScoreKind)
        self._check("a whole number of at least 1", _is_count, "observation_dim", "action_dim")
        self._check("a whole number of at least 1", _is_count, "episode_length", "action_repeat")
        self._check("true or false", lambda value: isinstance(value, bool | np.bool_), "terminates", "reports_success")
        self._check(f"one of {', '.join(kinds)}", kinds.__contains__, "action_kind")
        self._check(f"one of {', '.join(scores)}", scores.__contains__, "score_kind")
        self._check("a number or null", _is_number_or_none, "score_random", "score_expert")
        self._check("a mapping", lambda value: isinstance(value, Mapping), "environment")
        if self.discount is None:
            object.__setattr__(self, "discount", heuristic_discount(self.episode_length))
        elif not _is_number_or_none(self.discount) or not 0 <= self.discount < 1:
            raise TaskError(f"task {self.name!r}: discount must lie in [0, 1), found {self.discount!r:.80}")
        object.__setattr__(self, "environment", dict(self.environment))

    def _check(self, expected: str, is_right: Callable[[Any], bool], *fields: str) -> None:
        for field_name in fields:
            if not is_right(value := getattr(self, field_name)):
                raise TaskError(f"task {self.name!r}: {field_name} must be {expected}, found {value!r:.80}")

    @property
    def suite(self) -> str:
        return self.name.split("/", 1)[0]

    @property
    def slug(self) -> str:
        """The name as a single path component."""
        return self.name.replace("/", ".")

    @property
    def score_problem(self) -> str:
        """Why there is no normalised score; empty if there is one, and for other kinds of score."""
        if self.score_kind != "normalised":
            return ""
        random, expert = self.score_random, self.score_expert
        if random is None or expert is None:
            unknown = [name for name in ("score_random", "score_expert") if getattr(self, name) is None]
            return f"no value for {' and '.join(unknown)}"
        return "" if expert > random else f"score_expert must be above score_random, found {expert:g} and {random:g}"

    def score(self, return_mean: float, success_rate: float | None) -> float:
        """Return the score: return / 1000, success rate, or (return - random) / (expert - random).

        NaN if `score_problem` is not empty, or if there is no success rate.
        """
        if self.score_kind == "return_per_1000":
            return return_mean / 1000
        if self.score_kind == "success":
            return math.nan if success_rate is None else success_rate
        if self.score_problem or self.score_random is None or self.score_expert is None:
            return math.nan
        return (return_mean - self.score_random) / (self.score_expert - self.score_random)

    def check_observation(self, width: int) -> None:
        """Raise a TaskError unless observations of the task have `width` numbers."""
        if width != self.observation_dim:
            raise TaskError(f"task {self.name!r} has observations of {self.observation_dim} numbers, found {width}")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TaskSpec:
        fields = dataclasses.fields(cls)
        known = {f.name for f in fields}
        if not isinstance(values, Mapping):
            raise TaskError(f"a task spec must be a mapping of fields, found {values!r:.80}")
        if unknown := sorted(set(values) - known):
            raise TaskError(f"task spec has unknown fields {unknown}; it was written by another version of orrery")
        needed = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}
        if missing := sorted(needed - set(values)):
            raise TaskError(f"task spec lacks {', '.join(missing)}; it was edited, or written by another program")
        return cls(**values)


class TaskTable(Sequence[TaskSpec]):
    """The ordered tasks of a model; a task's id is its position. Stored with stores, checkpoints and policies."""

    def __init__(self, tasks: Sequence[TaskSpec]) -> None:
        names = [task.name for task in tasks]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise TaskError(f"a task table must name each task once; repeated: {repeated}")
        if not tasks:
            raise TaskError("a task table needs at least one task")
        self._tasks = tuple(tasks)

    def __getitem__(self, index: int) -> TaskSpec:  # type: ignore[override]
        return self._tasks[index]

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[TaskSpec]:
        return iter(self._tasks)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskTable) and self._tasks == other._tasks

    def __hash__(self) -> int:
        return hash(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self._tasks)

    def id_of(self, name: str) -> int:
        """Return the id of a task. Raises TaskError if the table has no such task."""
        if name not in self.names:
            raise TaskError(f"task {name!r} is not in this table, which holds: {', '.join(self.names)}")
        return self.names.index(name)

    def spec_of(self, name: str) -> TaskSpec:
        return self[self.id_of(name)]

    @property
    def observation_dim(self) -> int:
        """Padded width: the largest of all tasks."""
        return max(task.observation_dim for task in self._tasks)

    @property
    def action_dim(self) -> int:
        return max(task.action_dim for task in self._tasks)

    def check_fits(self, weights: Path) -> None:
        """Raise a CheckpointError if a weight file is too short for the widths of the table."""
        width = self.observation_dim + self.action_dim
        if weights.is_file() and width > (size := weights.stat().st_size):
            raise CheckpointError(
                f"{weights.parent / 'tasks.json'} gives observation and action {width:,} numbers together, more than "
                f"{weights.name} can hold in {size:,} bytes; restore the file"
            )

    def action_mask(self) -> np.ndarray:
        """Return [K, A] float32: 1 for the task's own action components, 0 for padding."""
        widths = np.array([task.action_dim for task in self._tasks])
        return (np.arange(self.action_dim) < widths[:, None]).astype(np.float32)

    def to_json(self) -> str:
        return json.dumps([task.to_dict() for task in self._tasks], indent=1)

    @classmethod
    def from_json(cls, text: str) -> TaskTable:
        return cls([TaskSpec.from_dict(values) for values in json.loads(text)])


def read_table(folder: Path) -> TaskTable:
    """Read the tasks.json of an artifact.

    Raises:
        CheckpointError: the file is missing or not a task table.
    """
    path = folder / "tasks.json"
    if not path.exists():
        raise CheckpointError(f"{path}: the task table is missing; restore the file, or recreate {folder}")
    with reading(path, CheckpointError):
        specs = read_json(path, CheckpointError)
        if not isinstance(specs, list):
            raise CheckpointError(f"{path}: expected a list of task specs, found {specs!r:.80}")
        return TaskTable([TaskSpec.from_dict(values) for values in specs])


@dataclass(frozen=True)
class Episode:
    """One episode, in the project's alignment and units."""

    observations: np.ndarray
    """[T + 1, O] float32."""
    actions: np.ndarray
    """[T, A] float32."""
    rewards: np.ndarray
    """[T] float32."""
    terminated: bool
    """Whether the last transition reached a terminal state; otherwise the episode was truncated."""
    success: np.ndarray | None = None
    """[T] bool, after each action; None if the task does not report success."""
    label: str = ""
    """Origin of the episode for error messages: `file.hdf5:data/demo_3`."""

    def __len__(self) -> int:
        return len(self.actions)
