"""Config of the stage mppi. Reading it imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from ...pipeline.config.checks import check_counts, check_not_negative
from ...pipeline.errors import CheckpointError, ConfigError

LATENT_ALGORITHM = "tdmpc2_plan"
"""Plans through a latent model, with its values."""
MPPI, CEM = "mppi", "cem"
STATE_ALGORITHMS = (MPPI, CEM)
"""Plan through a model of observations, on rewards only."""
ALGORITHMS = (LATENT_ALGORITHM, *STATE_ALGORITHMS)

MATMUL_PRECISIONS = ("highest", "high", "medium")


def check_can_plan(values: bool, dynamics: str, where: str) -> None:
    """Raise a CheckpointError unless the model has the values, policy prior and step dynamics that planning needs."""
    if dynamics != "step":
        raise CheckpointError(
            f"{where} predicts whole action sequences (dynamics is {dynamics}), but planning needs single steps; "
            "pretrain one with pretrain.model.dynamics=step"
        )
    if not values:
        raise CheckpointError(
            f"{where} has no value functions and no policy prior (num_q is 0), which planning needs; pretrain with "
            "pretrain.model.num_q=5, or pretrain.model.size=1 or larger"
        )


@dataclass(frozen=True)
class PlannerConfig:
    """MPPI as in TD-MPC2 (arXiv 2310.16828, table 8)."""

    horizon: int = 3
    """Imagined steps per trajectory; the value ensemble estimates the return after them."""
    iterations: int = 6
    """Iterations of sampling and refitting. TD-MPC2 adds two for actions with 20 or more components."""
    samples: int = 512
    """Trajectories per iteration, including those of the policy prior."""
    elites: int = 64
    """Best trajectories of an iteration, to which mean and standard deviation are fitted."""
    prior_trajectories: int = 24
    """Trajectories imagined by the policy prior; they take part in every iteration."""
    min_std: float = 0.05
    """Minimum standard deviation of an action component; actions lie in [-1, 1]."""
    max_std: float = 2.0
    """Maximum standard deviation of an action component, and its initial value at every step."""
    temperature: float = 0.5
    """Elite weights are exp(temperature * (return - best return))."""
    sample_elite: bool = False
    """Act with the first action of an elite drawn by weight, as TD-MPC2 does even in evaluation, instead of the
    mean."""
    matmul_precision: str = "highest"
    """Precision of the planner's matrix products: highest, high or medium, as in torch.set_float32_matmul_precision.
    TD-MPC2 uses high, which is TF32 on a GPU; medium is bfloat16 on CPUs that support it."""

    def __post_init__(self) -> None:
        check_counts(self, "horizon", "iterations", "samples", "elites")
        if not 0 <= self.prior_trajectories < self.samples:
            raise ConfigError(
                f"prior_trajectories must be at least 0 and less than samples ({self.samples}), "
                f"found {self.prior_trajectories}"
            )
        if self.elites > self.samples:
            raise ConfigError(f"elites ({self.elites}) must not exceed samples ({self.samples})")
        if not 0 <= self.min_std <= self.max_std:
            raise ConfigError(
                f"min_std, max_std: expected 0 <= min_std <= max_std, found {self.min_std} and {self.max_std}"
            )
        check_not_negative(self, "temperature")
        if self.matmul_precision not in MATMUL_PRECISIONS:
            raise ConfigError(
                f"matmul_precision: expected {', '.join(MATMUL_PRECISIONS)}, found {self.matmul_precision!r}"
            )


@dataclass(frozen=True)
class MppiConfig:
    """Planners to create, and how they plan."""

    planner: PlannerConfig = field(default_factory=PlannerConfig)
    """Sampling and refitting."""
    algorithms: list[str] = field(default_factory=lambda: [LATENT_ALGORITHM])
    """tdmpc2_plan plans through a latent model; mppi and cem (uniformly weighted elites) through a model of
    observations."""
    state_horizon: int = 20
    """Imagined steps of mppi and cem, which have no values after them; replaces `planner.horizon`."""
    tasks: list[str] = field(default_factory=list)
    """Tasks of the world model to plan for. Empty: all."""
    seeds: int = 2
    """Planners per task; they differ in random numbers and evaluation episodes."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        check_counts(self, "seeds", "state_horizon")
        if unknown := sorted(set(self.algorithms) - set(ALGORITHMS)):
            raise ConfigError(f"mppi.algorithms: unknown {unknown}, this stage has: {', '.join(ALGORITHMS)}")

    def planner_of(self, algorithm: str) -> PlannerConfig:
        """Return the planner settings of an algorithm."""
        if algorithm not in STATE_ALGORITHMS:
            return self.planner
        temperature = 0.0 if algorithm == CEM else self.planner.temperature
        return dataclasses.replace(
            self.planner, horizon=self.state_horizon, prior_trajectories=0, temperature=temperature
        )
