"""Configs of the stages collect, replay_datasets and pack. Reading them imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ...datasets.schema import BEHAVIOURS
from ...datasets.tasks import expand_names
from ...datasets.tasks.tdmpc2 import SETS
from ...pipeline.config.checks import check_choices, check_counts, check_shares
from ...pipeline.errors import ConfigError
from ...pipeline.jobs.config import FanoutConfig

COLLECTED = ("exploration", "expert", "policy")
"""How collected data is made."""

CHUNK = 20
"""Episodes that collect plays at a time: a few seconds of simulation, so that progress moves and processes end
together."""


@dataclass(frozen=True)
class SourceConfig:
    """A dataset that Orrery did not collect."""

    path: str = ""
    """HDF5, npz or Parquet file, folder of a Minari, LeRobot or TorchRL dataset, or Minari id; for mt30 and mt80, the
    folder of TD-MPC2's chunk_*.pt."""
    columns: str = ""
    """YAML column map of the dataset (not for Minari). Empty: recognise the columns by their names."""
    behaviour: str = ""
    """How the data was collected: exploration, expert, policy or replay (of a learner); sets the default behaviour
    anchor. Empty: use the dataset's metadata; mt30 and mt80 count as exploration."""
    episode_length: int = 0
    """Episode length in rows of the dataset; 0 = the environment's time limit, or the longest episode."""
    score_random: float | None = None
    """Return that scores 0."""
    score_expert: float | None = None
    """Return that scores 1; must be above `score_random`."""
    environment: str = ""
    """Environment of the data, for evaluation, if the dataset does not state it: a Gymnasium id, MODULE:ID with the
    module that registers it, or a task such as dmc/walker-run. Its action bounds and time limit apply."""
    action_low: list[float] = field(default_factory=list)
    """Action value that maps to -1, in the dataset's units (one number for all components, or one each); makes actions
    continuous. Empty: bounds of the environment or action space, else the largest magnitude in the data."""
    action_high: list[float] = field(default_factory=list)
    """Action value that maps to 1."""
    choices: int = 0
    """Number of discrete actions, if the data does not use all of them or stores floats or one-hot rows; not for
    Minari."""
    choices_start: int | None = None
    """Number of the first discrete action. Empty: as in the environment, else 0; not for
    Minari."""

    def check(self, name: str) -> None:
        """Raise a ConfigError if settings of the source `name` contradict each other."""
        if self.behaviour not in ("", *BEHAVIOURS):
            raise ConfigError(
                f"pack.sources.{name}.behaviour: expected {', '.join(BEHAVIOURS)}, found {self.behaviour!r}"
            )
        for key in ("episode_length", "choices"):
            if getattr(self, key) < 0:
                raise ConfigError(f"pack.sources.{name}.{key} must not be negative, found {getattr(self, key)}")
        if bool(self.action_low) != bool(self.action_high):
            raise ConfigError(f"pack.sources.{name}: action_low and action_high must be set together")
        random, expert = self.score_random, self.score_expert
        if random is not None and expert is not None and not random < expert:
            raise ConfigError(
                f"pack.sources.{name}.score_expert must be above score_random, or a worse policy would score higher; "
                f"found {expert:g} and {random:g}"
            )
        if self.action_low and (discrete := [key for key in ("choices", "choices_start") if getattr(self, key)]):
            raise ConfigError(
                f"pack.sources.{name}: {discrete[0]} is for discrete actions, action_low and action_high are for "
                "continuous ones; remove one of them"
            )

    def overrides(self) -> dict[str, Any]:
        """Return the TaskSpec fields that it sets, as `open_reader` takes them."""
        scores = {"score_random": self.score_random, "score_expert": self.score_expert}
        given: dict[str, Any] = {key: score for key, score in scores.items() if score is not None}
        if self.episode_length:
            given["episode_length"] = self.episode_length
        if self.action_low:
            given |= {"action_low": self.action_low, "action_high": self.action_high}
        if self.environment:
            given["environment"] = self.environment
        if self.choices:
            given |= {"action_kind": "discrete", "action_dim": self.choices}
        if self.choices_start is not None:
            given |= {"action_kind": "discrete", "choices_start": self.choices_start}
        return given


@dataclass(frozen=True)
class PackConfig:
    """Datasets of the store, and their order."""

    tasks: list[str] = field(default_factory=list)
    """Tasks of the store, in order: collected tasks, names under `sources`, minari/<id>, or files and folders of
    datasets; mt30 and mt80 are TD-MPC2's sets. Empty: all collected tasks, then all sources."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Settings of each dataset, by its name in `tasks`; if that is a path or an id, `path` stays empty. mt30 or mt80
    provides every task of TD-MPC2's set."""
    window: int = 5
    """Steps that some episode of each task must have; set it to `pretrain.horizon`."""
    episodes: int = 0
    """Maximum episodes per task, from the start of its dataset; 0 = all."""

    def __post_init__(self) -> None:
        check_counts(self, "window")
        if self.episodes < 0:
            raise ConfigError(f"pack.episodes must not be negative (0 = all), found {self.episodes}")
        for name, source in self.sources.items():
            source.check(name)
            if name in SETS and source != SourceConfig(path=source.path, behaviour=source.behaviour):
                raise ConfigError(f"pack.sources.{name}: only path and behaviour apply to the tasks of a set")
            if self.tasks and name in SETS and not set(self.names) & set(SETS[name]):
                raise ConfigError(f"pack.sources names {name!r}, of which no task is in tasks: {', '.join(self.tasks)}")
            if self.tasks and name not in SETS and name not in self.names:
                raise ConfigError(
                    f"pack.sources names {name!r}, which is not in tasks: {', '.join(self.tasks)}; use a name as it "
                    "stands there"
                )
        if SETS.keys() <= self.sources.keys():
            raise ConfigError(f"pack.sources names {' and '.join(SETS)}, which share tasks; remove one of them")

    @property
    def names(self) -> list[str]:
        """`tasks` with sets and aliases expanded."""
        return self._expand(self.tasks)

    @property
    def offered(self) -> list[str]:
        """Tasks provided by `sources`."""
        return list(dict.fromkeys(self._expand(self.sources)))

    @property
    def task_set(self) -> str | None:
        """mt30 or mt80, if `sources` has it."""
        return next((name for name in self.sources if name in SETS), None)

    def from_set(self, name: str) -> bool:
        """Whether the data of a task is in the chunks of that set."""
        return self.task_set is not None and name in SETS[self.task_set] and name not in self.sources

    def _expand(self, names: Iterable[str]) -> list[str]:
        return expand_names(names, keep=self.sources.keys() - SETS.keys())


@dataclass(frozen=True)
class CollectConfig:
    """Data to collect."""

    tasks: list[str] = field(default_factory=list)
    """Task names such as dmc/walker-run, metaworld/reach-v3, gymnasium/Pendulum-v1; mt30 and mt80 are TD-MPC2's
    sets."""
    episodes: int = 200
    """Episodes per task."""
    behaviour_mixture: dict[str, float] = field(default_factory=dict)
    """Relative number of episodes by how they are made: exploration, expert or policy. {exploration: 2} collects twice
    `episodes` of each task that is explored."""
    seed: int = 0
    """Random seed. Each episode depends only on the seed, its task and its number."""
    expert_noise: list[float] = field(default_factory=lambda: [0.0, 0.6])
    """Minimum and maximum standard deviation of action noise on scripted experts, drawn once per episode."""
    random_share: float = 0.1
    """Share of a scripted expert's episodes with uniformly random actions."""
    policy: str | None = None
    """Folder of a policies artifact that collects instead; the policies of a task take turns. Every task needs a policy
    in it."""
    policy_algorithm: str = ""
    """Algorithm in the artifact `collect.policy` that collects. Empty: the first one listed."""
    policy_noise: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Minimum and maximum exploration noise of `collect.policy`, drawn once per episode: standard deviation for
    continuous actions, share of uniformly random choices for discrete ones."""
    policy_random_share: float = 0.0
    """Share of episodes with random exploration instead of `collect.policy`."""
    fanout: FanoutConfig = field(default_factory=FanoutConfig)
    """Jobs, whose episodes are played in parallel: one per task; with executor=inline, one for all."""

    def __post_init__(self) -> None:
        check_counts(self, "episodes")
        if unknown := sorted(set(self.behaviour_mixture) - set(COLLECTED)):
            raise ConfigError(f"behaviour_mixture: expected {', '.join(COLLECTED)}, found {', '.join(unknown)}")
        if wrong := {name: share for name, share in self.behaviour_mixture.items() if share <= 0}:
            raise ConfigError(f"behaviour_mixture must be positive, found {wrong}")
        for name in ("expert_noise", "policy_noise"):
            noise = getattr(self, name)
            if len(noise) != 2 or not 0 <= noise[0] <= noise[1]:
                raise ConfigError(f"{name} must be two numbers 0 <= low <= high, found {noise}")
        check_shares(self, "random_share", "policy_random_share")


@dataclass(frozen=True)
class ReplayDatasetsConfig:
    """Replay buffers to convert."""

    tasks: list[str] = field(default_factory=list)
    """Tasks to write. Empty: every task that was learned."""
    algorithm: str = ""
    """Algorithm or variant whose replay buffers are written. Empty: the only one that has some."""
    behaviour: str = "replay"
    """Behaviour recorded with the data, which sets the defaults of later stages."""

    def __post_init__(self) -> None:
        check_choices(self, behaviour=BEHAVIOURS)
