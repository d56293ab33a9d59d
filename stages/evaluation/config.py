"""Config of the stage evaluate. Reading it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...pipeline.accelerator import check_accelerator
from ...pipeline.config.checks import check_counts
from ...pipeline.errors import ConfigError
from ...pipeline.jobs.config import FanoutConfig

BASELINES = ("behaviour", "random")


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation protocol."""

    episodes: int = 10
    """Episodes per policy."""
    seed: int = 0
    """Random seed. An episode's environment seed depends only on it, the task, the policy's seed and the episode
    number."""
    baselines: list[str] = field(default_factory=lambda: list(BASELINES))
    """behaviour: returns of the data. random: uniformly random actions, with as many episodes as a policy."""
    accelerator: str = "cpu"
    """Device: cpu, cuda (alias gpu) or auto. Only planning with a large model benefits from a GPU."""
    fanout: FanoutConfig = field(default_factory=FanoutConfig)
    """Jobs, whose policies act in parallel. With policies_per_job=0: one per task; with executor=inline, one for
    all."""

    def __post_init__(self) -> None:
        check_counts(self, "episodes")
        if unknown := sorted(set(self.baselines) - set(BASELINES)):
            raise ConfigError(f"baselines: expected some of {', '.join(BASELINES)}, found {', '.join(unknown)}")
        check_accelerator(self)
