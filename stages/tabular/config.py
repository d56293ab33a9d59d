"""Config of the stage tabular. Reading it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...pipeline.config.checks import check_choices, check_counts, check_positive

METHODS = ("value_iteration", "policy_iteration", "mirror_descent")
UNSEEN = ("avoid", "zero")


@dataclass(frozen=True)
class TabularConfig:
    """Solver of the counted model."""

    tasks: list[str] = field(default_factory=list)
    """Tasks of the store. Empty: all."""
    method: str = "policy_iteration"
    """value_iteration, policy_iteration, or mirror_descent. The first two agree; the last approximates them."""
    unseen: str = "avoid"
    """Actions never tried in a state: avoid never takes them, zero gives them the value 0."""
    steps: int = 100
    """Steps of mirror descent."""
    step_size: float = 1.0
    """Step size of mirror descent, per unit of return."""
    max_states: int = 3000
    """Maximum number of distinct observations; the model takes 8 x states^2 x actions bytes."""

    def __post_init__(self) -> None:
        check_choices(self, method=METHODS, unseen=UNSEEN)
        check_counts(self, "steps", "max_states")
        check_positive(self, "step_size")
