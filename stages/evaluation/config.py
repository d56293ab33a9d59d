"""Config of the stage evaluate. Reading it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...pipeline.accelerator import check_accelerator
from ...pipeline.config.checks import check_counts
from ...pipeline.errors import ConfigError

BASELINES = ("behaviour", "random")


@dataclass(frozen=True)
class EvaluateConfig:
    """How policies are judged."""

    episodes: int = 10
    """Per policy."""
    seed: int = 0
    """With the task, the policy's seed and an episode's number, determines that episode's environment seed."""
    baselines: list[str] = field(default_factory=lambda: list(BASELINES))
    """behaviour: the returns in the dataset. random: uniform actions, as many episodes as a policy has."""
    accelerator: str = "cpu"
    """cpu, cuda (or gpu, the same), or auto. Only planning through a large model gains from a GPU."""

    def __post_init__(self) -> None:
        check_counts(self, "episodes")
        if unknown := sorted(set(self.baselines) - set(BASELINES)):
            raise ConfigError(f"baselines: expected some of {', '.join(BASELINES)}, found {', '.join(unknown)}")
        check_accelerator(self)
