"""Configs of the stages sac and powr_baselines. Reading them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...pipeline.config.checks import check_counts
from ...pipeline.errors import ConfigError

LIBRARIES = {"a2c": "stable_baselines3", "dqn": "stable_baselines3", "ppo": "stable_baselines3", "trpo": "sb3_contrib"}
"""Which package has which algorithm; both come with the extra `baselines`."""


@dataclass(frozen=True)
class PowrBaselinesConfig:
    """The libraries' default settings with a multi-layer perceptron, on one environment."""

    task: str = ""
    """Name such as gymnasium/CartPole-v1."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment, for example {is_slippery: false}."""
    algorithms: list[str] = field(default_factory=lambda: list(LIBRARIES))
    """Of a2c, dqn, ppo, trpo."""
    transitions: int = 10000
    """Environment decisions of each run."""
    evaluate_every: int = 1000
    """Decisions between evaluations."""
    evaluation_episodes: int = 10
    """Per evaluation, greedily."""
    seeds: int = 5
    """Independent runs of each algorithm."""
    seed: int = 0
    """Base of all randomness of this stage."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.algorithms) - set(LIBRARIES)):
            raise ConfigError(f"algorithms: unknown {unknown}, this stage has: {', '.join(LIBRARIES)}")
        check_counts(self, "transitions", "evaluate_every", "evaluation_episodes", "seeds")


@dataclass(frozen=True)
class SacConfig:
    """Ma et al.'s settings (arXiv 2402.05290, released code) where they name them, the library's otherwise."""

    tasks: list[str] = field(default_factory=list)
    """Tasks of the store with continuous actions; all of them where empty."""
    seeds: int = 2
    """Runs per task."""
    decisions: int = 5000
    """Environment decisions of each run."""
    warm_up: int = 1000
    """Decisions before the first update."""
    update_every: int = 2
    """Decisions per update."""
    batch_size: int = 128
    """Transitions per update."""
    lr: float = 3e-4
    """Adam, of actor, critics and temperature."""
    discount: float = 0.99
    """Per decision."""
    actor_units: list[int] = field(default_factory=lambda: [128, 128])
    """Hidden widths."""
    critic_units: list[int] = field(default_factory=lambda: [256, 256])
    """Hidden widths."""
    seed: int = 0
    """Base of all randomness of this stage."""

    def __post_init__(self) -> None:
        check_counts(self, "seeds", "decisions", "update_every", "batch_size")
        if not 0 <= self.warm_up < self.decisions:
            raise ConfigError(f"sac.warm_up must be less than the {self.decisions} decisions, found {self.warm_up}")
