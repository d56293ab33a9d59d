"""Names and settings that several modules share. Apart from them so that reading a config imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.errors import ConfigError

KERNELS = ("delta", "laplace", "gaussian", "product_laplace", "linear")
"""Kernels of states, see `kernels`."""

SELECTIONS = ("uniform", "distinct", "cholesky")
"""Ways to choose centres, see `centres`."""

SINKS = ("all", "taken")
"""Actions that get a sink row at a terminal state."""


@dataclass(frozen=True)
class PlannerConfig:
    """The world model's regression, and mirror descent on it."""

    centres: int = 1000
    """Rows that carry a weight. A step costs rows x centres^2 / actions; 1000 to 2000 suit a CPU."""
    selection: str = "distinct"
    """Which rows: uniform (as published), distinct (uniform among different state-action pairs), or cholesky."""
    ridge: float = 1e-6
    """Weight of the penalty per row; the released code's lambda."""
    jitter: float = 1e-6
    """Added to the diagonal of the system."""
    step_size: float = 0.1
    """eta of mirror descent, per unit of return."""
    steps: int = 1
    """Steps of mirror descent on one fit."""
    step_growth: float = 1.0
    """Each further step on a fit is this much larger; above 1 it converges as policy iteration does."""
    sinks: str = "all"
    """Terminal states are told to have value 0 for all actions, or, as published, for the one taken."""
    reward_offset: float = 0.0
    """Added to every reward, of sinks too. State-action pairs far from the data have value 0, so a negative offset
    draws the policy there (exploration), a positive one keeps it away (offline data)."""
    memory: int = 0
    """Epochs whose action values the policy sums; 0 is all, as published."""

    def __post_init__(self) -> None:
        if self.selection not in SELECTIONS:
            raise ConfigError(f"selection: expected one of {', '.join(SELECTIONS)}, found {self.selection!r}")
        if self.sinks not in SINKS:
            raise ConfigError(f"sinks: expected one of {', '.join(SINKS)}, found {self.sinks!r}")
        for name in ("centres", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("ridge", "jitter", "memory"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, found {getattr(self, name)}")
        if self.step_size <= 0 or self.step_growth <= 0:
            raise ConfigError(f"step_size and step_growth must be positive, found {self.step_size}, {self.step_growth}")
