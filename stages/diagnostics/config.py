"""Config of the stage gradients. Reading it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...pipeline.config.checks import check_counts
from ...pipeline.errors import ConfigError


@dataclass(frozen=True)
class GradientsConfig:
    """Where gradients are measured."""

    horizons: list[int] = field(default_factory=lambda: [5, 10, 20, 50, 100])
    """Decisions from the first action to what is differentiated. Those beyond the model or the data are left out."""
    trajectories: int = 64
    """Windows of each task's data: their first observations and actions. r2 has as many of held-out episodes."""
    probes: int = 16
    """Random directions from which the norm of a latent model's Jacobian is estimated; sequence models need none."""
    tasks: list[str] = field(default_factory=list)
    """Tasks of the store; all of them where empty."""
    seed: int = 0
    """Of windows and probes."""

    def __post_init__(self) -> None:
        if not self.horizons or min(self.horizons) < 1:
            raise ConfigError(f"horizons must be numbers of at least 1, found {self.horizons}")
        if self.trajectories < 2:
            raise ConfigError(f"trajectories must be at least 2, found {self.trajectories}")
        check_counts(self, "probes")
