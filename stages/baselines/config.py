"""Configs of the stages sac and powr_baselines. Reading them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...pipeline.config.checks import check_counts
from ...pipeline.errors import ConfigError

LIBRARIES = {"a2c": "stable_baselines3", "dqn": "stable_baselines3", "ppo": "stable_baselines3", "trpo": "sb3_contrib"}
"""Package of each algorithm; both come with the extra `baselines`."""


@dataclass(frozen=True)
class PowrBaselinesConfig:
    """Default settings of the libraries with a multi-layer perceptron, in one environment."""

    task: str = ""
    """Task name such as gymnasium/CartPole-v1."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment, for example {is_slippery: false}."""
    algorithms: list[str] = field(default_factory=lambda: list(LIBRARIES))
    """Algorithms: a2c, dqn, ppo, trpo."""
    transitions: int = 10000
    """Environment steps per run."""
    evaluate_every: int = 1000
    """Steps between evaluations."""
    evaluation_episodes: int = 10
    """Episodes per evaluation, with the greedy policy."""
    seeds: int = 5
    """Independent runs per algorithm."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.algorithms) - set(LIBRARIES)):
            raise ConfigError(f"algorithms: unknown {unknown}, this stage has: {', '.join(LIBRARIES)}")
        check_counts(self, "transitions", "evaluate_every", "evaluation_episodes", "seeds")


@dataclass(frozen=True)
class SacConfig:
    """Soft actor-critic. Settings of Ma et al. (arXiv 2402.05290, released code) where given, else the library's."""

    tasks: list[str] = field(default_factory=list)
    """Tasks of the store with continuous actions. Empty: all."""
    seeds: int = 2
    """Runs per task."""
    steps: int = field(default=5000, metadata={"renamed_from": "decisions"})
    """Environment steps per run. A step includes the action repeat."""
    warm_up: int = 1000
    """Steps before the first update."""
    update_every: int = 2
    """Steps per update."""
    batch_size: int = 128
    """Transitions per update."""
    lr: float = 3e-4
    """Learning rate (Adam) of actor, critics and temperature."""
    discount: float = 0.99
    """Discount per step."""
    actor_units: list[int] = field(default_factory=lambda: [128, 128])
    """Hidden widths of the actor."""
    critic_units: list[int] = field(default_factory=lambda: [256, 256])
    """Hidden widths of the critics."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        check_counts(self, "seeds", "steps", "update_every", "batch_size")
        if not 0 <= self.warm_up < self.steps:
            raise ConfigError(f"sac.warm_up must be less than the {self.steps} steps, found {self.warm_up}")
