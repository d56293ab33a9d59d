"""Config of the stage dyna. Reading it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...pipeline.config.checks import check_choices, check_counts, check_positive
from ...pipeline.errors import ConfigError

ACTIONS = ("auto", "policies", "data", "uniform")


@dataclass(frozen=True)
class DynaConfig:
    """What is generated."""

    share: float = 1.0
    """Generated decisions per decision of the data."""
    length: int = 5
    """Decisions of a generated episode. The model's errors add up over them."""
    actions: str = "auto"
    """policies: of the run's policies, those of a task in turn. data: sequences from elsewhere in the data. uniform:
    uniformly random. auto: policies where the run has some, else data."""
    algorithm: str = ""
    """Which policies act; empty takes the first algorithm that their artifact lists."""
    noise: list[float] = field(default_factory=lambda: [0.0, 0.3])
    """Lowest and highest level of noise on them, drawn once per episode, as collect.policy_noise."""
    reward: str = "auto"
    """true: of the task's simulator. learned: the model's reward head. auto: true where there is a simulator."""
    seed: int = 0
    """Base of all randomness of this stage."""

    def __post_init__(self) -> None:
        check_positive(self, "share")
        check_counts(self, "length")
        check_choices(self, actions=ACTIONS)
        if len(self.noise) != 2 or not 0 <= self.noise[0] <= self.noise[1]:
            raise ConfigError(f"noise must be two numbers 0 <= low <= high, found {self.noise}")
