"""Configs of the stages bpo and bpo_online. Reading them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...pipeline.config.checks import check_counts
from ...pipeline.errors import ConfigError
from ..sequence_model.config import BpoConfig, OnlineConfig, SequenceModelConfig

GRADIENTS = ("model", "simulator")


@dataclass(frozen=True)
class BpoStageConfig:
    """Which policies are trained, and how."""

    bpo: BpoConfig = field(default_factory=BpoConfig)
    """Rollouts, policy and optimiser."""
    gradients: list[str] = field(default_factory=lambda: ["model"])
    """model: through the sequence model; its policies are called bpo_<kind>, for example bpo_awm. simulator: through
    the task's own simulator, an upper baseline for differentiable tasks; called bpo_simulator."""
    tasks: list[str] = field(default_factory=list)
    """Tasks of the store to train policies for; all of them where empty."""
    seeds: int = 2
    """Policies per task and gradient."""
    iterations: int = 500
    """Updates of each policy."""
    starts_per_task: int = 16384
    """Frames of the data from which imagined episodes begin, at most."""
    log_every: int = 10
    """Iterations between logged numbers."""
    seed: int = 0
    """Base of all randomness of this stage."""

    def __post_init__(self) -> None:
        check_counts(self, "seeds", "iterations", "starts_per_task", "log_every")
        if not self.gradients or set(self.gradients) - set(GRADIENTS):
            raise ConfigError(f"bpo.gradients: expected some of {', '.join(GRADIENTS)}, found {self.gradients}")


@dataclass(frozen=True)
class BpoOnlineConfig:
    """Which tasks are learned, with which model."""

    online: OnlineConfig = field(default_factory=OnlineConfig)
    """Budget and updates."""
    model: SequenceModelConfig = field(default_factory=SequenceModelConfig)
    """Kind and sizes of the sequence model."""
    tasks: list[str] = field(default_factory=list)
    """Tasks of the suite myriad."""
    seeds: int = 2
    """Runs per task."""
    seed: int = 0
    """Base of all randomness of this stage."""

    def __post_init__(self) -> None:
        check_counts(self, "seeds")
