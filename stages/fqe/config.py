"""Config of the stage fqe. Reading it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...pipeline.config.checks import check_counts, check_positive, check_shares
from ...pipeline.errors import ConfigError
from ...pipeline.jobs.config import FanoutConfig


@dataclass(frozen=True)
class FqeConfig:
    """Fitted Q evaluation of policies."""

    algorithms: list[str] = field(default_factory=list)
    """Algorithms to evaluate. Empty: all."""
    critics: int = 3
    """Critics per policy, each fitted to its own resample of the episodes; their spread gives the interval."""
    units: list[int] = field(default_factory=lambda: [128, 128])
    """Hidden widths of a critic."""
    updates: int = 10_000
    """Updates of every critic. Too few leave values near 0: 3,000 give 0.36 to 0.59 of returns over 500 steps."""
    batch_size: int = 256
    """Transitions per update."""
    lr: float = 1e-3
    """Learning rate of Adam at the start; falls linearly to 5%."""
    target_rate: float = 0.05
    """EMA rate of the target critics."""
    frames_per_task: int = 200_000
    """Maximum frames per task; of a larger dataset, a random choice of whole episodes is used."""
    fanout: FanoutConfig = field(default_factory=FanoutConfig)
    """Jobs, whose policies are estimated in parallel. With policies_per_job=0: one per task; with
    executor=inline, one for all."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        check_counts(self, "updates", "batch_size", "frames_per_task")
        check_positive(self, "lr", "target_rate")
        check_shares(self, "target_rate")
        if self.critics < 2:
            raise ConfigError(f"critics must be at least 2, for an interval, found {self.critics}")
