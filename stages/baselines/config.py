"""Configs of the stages baselines and baselines_offline. Reading them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...pipeline.config.checks import check_counts, check_not_negative, check_shares
from ...pipeline.errors import ConfigError
from ...pipeline.jobs.config import FanoutConfig

EPISODES_FILE = "episodes.npz"
"""Beside a policy: what was played in training."""

LIBRARIES = {
    "a2c": "stable_baselines3",
    "dqn": "stable_baselines3",
    "ppo": "stable_baselines3",
    "sac": "stable_baselines3",
    "trpo": "sb3_contrib",
}
"""Package of each algorithm; both come with the extra `baselines`."""


@dataclass(frozen=True)
class SacConfig:
    """Arguments of the library's SAC, with the values of Ma et al. (arXiv 2402.05290, released code)."""

    learning_starts: int = 1000
    """Steps before the first update."""
    train_freq: int = 2
    """Steps per update."""
    batch_size: int = 128
    """Transitions per update."""
    learning_rate: float = 3e-4
    """Learning rate of actor, critics and temperature (Adam)."""
    gamma: float = 0.99
    """Discount per step."""
    actor_units: list[int] = field(default_factory=lambda: [128, 128])
    """Hidden widths."""
    critic_units: list[int] = field(default_factory=lambda: [256, 256])
    """Hidden widths."""

    def __post_init__(self) -> None:
        check_counts(self, "train_freq", "batch_size")


@dataclass(frozen=True)
class BaselinesConfig:
    """Algorithms of Stable-Baselines3 and sb3-contrib, on the tasks' own environments."""

    tasks: list[str] = field(default_factory=list)
    """Task names, such as gymnasium/CartPole-v1; empty: all tasks of the store."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment, such as {is_slippery: false}; only for tasks without a store."""
    algorithms: list[str] = field(default_factory=lambda: ["sac"])
    """a2c, dqn, ppo, sac or trpo. sac needs continuous actions, dqn discrete ones. All but sac have the library's
    default settings."""
    sac: SacConfig = field(default_factory=SacConfig)
    steps: int = 5000
    """Environment steps of each run (a step includes the action repeat)."""
    evaluate_every: int = 0
    """Steps between evaluations, which give learning curves; 0: none."""
    evaluation_episodes: int = 10
    """Episodes per evaluation, with the most likely action."""
    keep_replay: bool = False
    """Save the complete episodes played in training, for the stage replay_datasets."""
    checkpoint_every: int = 10_000
    """Steps between checkpoints, which include the replay buffer."""
    seeds: int = 2
    """Independent runs per task and algorithm."""
    seed: int = 0
    """Random seed."""
    fanout: FanoutConfig = field(default_factory=FanoutConfig)
    """Jobs, whose runs learn in parallel. With policies_per_job=0: one per run; with executor=inline, one for all."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.algorithms) - set(LIBRARIES)):
            raise ConfigError(
                f"baselines.algorithms: expected some of {', '.join(LIBRARIES)}, found {', '.join(unknown)}"
            )
        check_counts(self, "steps", "evaluation_episodes", "checkpoint_every", "seeds")
        check_not_negative(self, "evaluate_every")
        if "sac" in self.algorithms and not 0 <= self.sac.learning_starts < self.steps:
            raise ConfigError(
                f"baselines.sac.learning_starts must be less than baselines.steps ({self.steps}), found "
                f"{self.sac.learning_starts}"
            )


D3RLPY = {
    "td3_bc": "TD3PlusBC",
    "iql": "IQL",
    "rebrac": "ReBRAC",
    "cql": "CQL",
    "td3": "TD3",
    "sac_offline": "SAC",
}
"""Class of each algorithm in d3rlpy, which comes with the extra `baselines`."""


@dataclass(frozen=True)
class BaselinesOfflineConfig:
    """Algorithms of d3rlpy, on the transitions of a store."""

    tasks: list[str] = field(default_factory=list)
    """Tasks of the store. Empty: all."""
    algorithms: list[str] = field(default_factory=lambda: ["td3_bc", "iql"])
    """td3_bc, iql, rebrac, cql, td3 or sac_offline. td3 and sac_offline have no term that keeps them near the data and
    suit wide data, such as exploration."""
    seeds: int = 2
    """Policies per task and algorithm."""
    updates: int = 10_000
    """Gradient updates per policy."""
    batch_size: int = 256
    """Transitions per update."""
    units: list[int] = field(default_factory=lambda: [256, 256])
    """Hidden widths of actor and critics. Critics of rebrac have layer normalisation, as published."""
    discount: float = 0.0
    """Discount per step; 0 = each task's own."""
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Further arguments of d3rlpy's configs by algorithm, such as {td3_bc: {alpha: 1.0}, iql: {expectile: 0.9}}."""
    log_every: int = 500
    """Updates between logged metrics."""
    checkpoint_every: int = 2_000
    """Updates between checkpoints."""
    fanout: FanoutConfig = field(default_factory=FanoutConfig)
    """Jobs, one per policy, each on a CPU core."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        check_counts(self, "seeds", "updates", "batch_size", "log_every", "checkpoint_every")
        check_shares(self, "discount")
        for key, given in (("algorithms", self.algorithms), ("settings", self.settings)):
            if unknown := sorted(set(given) - set(D3RLPY)):
                raise ConfigError(
                    f"baselines_offline.{key}: expected some of {', '.join(D3RLPY)}, found {', '.join(unknown)}"
                )
        if not self.units or min(self.units) < 1:
            raise ConfigError(f"baselines_offline.units must be widths of at least 1, found {self.units}")
