"""Config of the stage baselines. Reading it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...pipeline.config.checks import check_counts, check_not_negative
from ...pipeline.errors import ConfigError

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
    """Of Adam, for actor, critics and temperature."""
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
    seeds: int = 2
    """Independent runs per task and algorithm."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.algorithms) - set(LIBRARIES)):
            raise ConfigError(
                f"baselines.algorithms: expected some of {', '.join(LIBRARIES)}, found {', '.join(unknown)}"
            )
        check_counts(self, "steps", "evaluation_episodes", "seeds")
        check_not_negative(self, "evaluate_every")
        if "sac" in self.algorithms and not 0 <= self.sac.learning_starts < self.steps:
            raise ConfigError(
                f"baselines.sac.learning_starts must be less than baselines.steps ({self.steps}), found "
                f"{self.sac.learning_starts}"
            )
