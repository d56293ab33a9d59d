"""Config of the stage gradients. Reading it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...pipeline.config.checks import check_counts
from ...pipeline.errors import ConfigError


@dataclass(frozen=True)
class GradientsConfig:
    """Measurement of gradients."""

    horizons: list[int] = field(default_factory=lambda: [5, 10, 20, 50, 100])
    """Steps from the first action to the differentiated state. Horizons beyond the model or the data are skipped."""
    trajectories: int = 64
    """Windows per task, whose first observations and actions are used; r2 uses as many held-out ones."""
    probes: int = 16
    """Random directions for estimating the Jacobian norm of a latent model; sequence models need none."""
    tasks: list[str] = field(default_factory=list)
    """Tasks of the store. Empty: all."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        if not self.horizons or min(self.horizons) < 1:
            raise ConfigError(f"horizons must be numbers of at least 1, found {self.horizons}")
        if self.trajectories < 2:
            raise ConfigError(f"trajectories must be at least 2, found {self.trajectories}")
        check_counts(self, "probes")
