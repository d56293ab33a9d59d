"""Config of the stage dyna. Reading it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...pipeline.config.checks import check_choices, check_counts, check_positive
from ...pipeline.errors import ConfigError
from ..sequence_model.config import REWARDS

ACTIONS = ("auto", "policies", "data", "uniform")


@dataclass(frozen=True)
class DynaConfig:
    """Data to generate."""

    share: float = 1.0
    """Generated steps per real step."""
    length: int = 5
    """Steps per generated episode; model errors accumulate over them."""
    actions: str = "auto"
    """policies: the run's policies, which take turns per task. data: action sequences from other parts of the data.
    uniform: uniformly random. auto: policies if the run has some, else data."""
    algorithm: str = ""
    """Algorithm whose policies act. Empty: the first one listed in their artifact."""
    noise: list[float] = field(default_factory=lambda: [0.0, 0.3])
    """Minimum and maximum noise level on actions, drawn once per episode, as in `collect.policy_noise`."""
    reward: str = "auto"
    """simulator: the true reward, from the task's simulator. learned: the model's reward head. auto: simulator if there
    is one."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        check_positive(self, "share")
        check_counts(self, "length")
        check_choices(self, actions=ACTIONS, reward=REWARDS)
        if len(self.noise) != 2 or not 0 <= self.noise[0] <= self.noise[1]:
            raise ConfigError(f"noise must be two numbers 0 <= low <= high, found {self.noise}")
