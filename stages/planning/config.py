"""Settings of planning. Apart from the planner so that reading a config imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from ...pipeline.config.checks import check_counts, check_not_negative
from ...pipeline.errors import CheckpointError, ConfigError

LATENT_ALGORITHM = "tdmpc2_plan"
"""Through a latent model, with its values."""
MPPI, CEM = "mppi", "cem"
STATE_ALGORITHMS = (MPPI, CEM)
"""Through a model of observations, of rewards alone."""
ALGORITHMS = (LATENT_ALGORITHM, *STATE_ALGORITHMS)

MATMUL_PRECISIONS = ("highest", "high", "medium")


def check_can_plan(num_q: int, dynamics: str, where: str) -> None:
    """Raise a CheckpointError unless the model has the values, policy prior and dynamics that planning needs."""
    if dynamics != "step":
        raise CheckpointError(
            f"{where} predicts whole action sequences (dynamics is {dynamics}), and planning asks for one decision; "
            "pretrain one with pretrain.model.dynamics=step"
        )
    if num_q == 0:
        raise CheckpointError(
            f"{where} has no value functions and no policy prior (num_q is 0), which planning needs; pretrain one that "
            "has them: pretrain.model.num_q=5, or pretrain.model.size=1 or larger"
        )


@dataclass(frozen=True)
class PlannerConfig:
    """MPPI as TD-MPC2 runs it (arXiv 2310.16828, table 8)."""

    horizon: int = 3
    """Imagined decisions per trajectory; the value ensemble stands for what comes after."""
    iterations: int = 6
    """Rounds of sampling and refitting. TD-MPC2 takes two more where actions have 20 components or more."""
    samples: int = 512
    """Trajectories per round, those of the policy prior included."""
    elites: int = 64
    """Best trajectories of a round, to which mean and standard deviation are fitted."""
    prior_trajectories: int = 24
    """Trajectories that the policy prior imagines; they take part in every round."""
    min_std: float = 0.05
    """Bounds of the standard deviation of an action component, in units of [-1, 1]."""
    max_std: float = 2.0
    """Also the standard deviation that every decision starts from."""
    temperature: float = 0.5
    """Elites are weighted by exp(temperature * (return - best return))."""
    sample_elite: bool = False
    """Take the first action of an elite drawn by its weight, as TD-MPC2 does also in evaluation, not the mean."""
    matmul_precision: str = "highest"
    """Of the planner's matrix products: highest, high or medium, as torch.set_float32_matmul_precision names them.
    TD-MPC2 runs with high, which is TF32 on a GPU; medium is bfloat16 on CPUs that have it."""

    def __post_init__(self) -> None:
        check_counts(self, "horizon", "iterations", "samples", "elites")
        if not 0 <= self.prior_trajectories < self.samples:
            raise ConfigError(
                f"prior_trajectories must be at least 0 and less than samples ({self.samples}), "
                f"found {self.prior_trajectories}"
            )
        if self.elites > self.samples:
            raise ConfigError(f"elites ({self.elites}) must not be more than samples ({self.samples})")
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
    """Which planners are made, and how they plan."""

    planner: PlannerConfig = field(default_factory=PlannerConfig)
    """Sampling and refitting."""
    algorithms: list[str] = field(default_factory=lambda: [LATENT_ALGORITHM])
    """tdmpc2_plan through a latent model; mppi and cem (elites count alike) through a model of observations."""
    state_horizon: int = 20
    """Imagined decisions of mppi and cem, in place of planner.horizon: no value stands for what comes after them."""
    tasks: list[str] = field(default_factory=list)
    """Tasks of the world model to plan for; all of them where empty."""
    seeds: int = 2
    """Planners per task, which differ in their random numbers and in the episodes that they are evaluated on."""
    seed: int = 0
    """Base of all randomness of the planners."""

    def __post_init__(self) -> None:
        check_counts(self, "seeds", "state_horizon")
        if unknown := sorted(set(self.algorithms) - set(ALGORITHMS)):
            raise ConfigError(f"mppi.algorithms: unknown {unknown}, this stage has: {', '.join(ALGORITHMS)}")

    def planner_of(self, algorithm: str) -> PlannerConfig:
        """Its settings for an algorithm."""
        if algorithm not in STATE_ALGORITHMS:
            return self.planner
        temperature = 0.0 if algorithm == CEM else self.planner.temperature
        return dataclasses.replace(
            self.planner, horizon=self.state_horizon, prior_trajectories=0, temperature=temperature
        )
