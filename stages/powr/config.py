"""Configs of the stages powr and powr_online. Reading them imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...pipeline.accelerator import check_accelerator
from ...pipeline.config.checks import check_choices, check_counts, check_not_negative, check_positive
from ...pipeline.errors import ConfigError
from ...pipeline.jobs.config import FanoutConfig

if TYPE_CHECKING:
    from ...datasets.schema import TaskSpec

ALGORITHM, ONLINE_ALGORITHM = "powr", "powr_online"
FIT_FILE = "fit.json"
"""Beside a policy: what is said of its regression."""

STATES = ("raw", "latent")
ACTIONS = ("mode", "mean")

KERNELS = ("delta", "laplace", "gaussian", "product_laplace", "linear")
"""State kernels, see `kernels`."""

SELECTIONS = ("uniform", "distinct", "cholesky")
"""Selections of centres, see `centres`."""

SINKS = ("all", "taken")
"""Actions that get a sink row at a terminal state."""

CANDIDATES = ("kmeans", "grid", "none")
STARTS = ("behaviour", "uniform")
SHIFTS = ("lowest", "none")


@dataclass(frozen=True)
class KernelPlannerConfig:
    """Kernel regression of the world model, and mirror descent on it."""

    centres: int = 1000
    """Rows with a weight. A step costs rows x centres^2 / actions; 1000 to 2000 suit a CPU."""
    selection: str = "distinct"
    """Selection of centres: uniform (as published), distinct (uniform over distinct state-action pairs) or cholesky."""
    ridge: float = 1e-6
    """Ridge penalty per row; lambda in the released code."""
    jitter: float = 1e-6
    """Jitter added to the diagonal of the linear system."""
    step_size: float = 0.1
    """Step size eta of mirror descent, per unit of return."""
    steps: int = 1
    """Mirror-descent steps per fit."""
    step_growth: float = 1.0
    """Growth factor of successive step sizes on one fit; above 1 it converges like policy iteration."""
    sinks: str = "all"
    """Actions for which terminal states get the value 0: all, or only the taken one (as published)."""
    reward_offset: float = 0.0
    """Constant added to every reward, including sinks. State-action pairs far from the data have value 0, so a negative
    offset encourages exploration and a positive one keeps the policy near the data (offline)."""
    memory: int = 0
    """Epochs whose action values the policy sums; 0 = all, as published."""

    def __post_init__(self) -> None:
        check_choices(self, selection=SELECTIONS, sinks=SINKS)
        check_counts(self, "centres", "steps")
        check_not_negative(self, "ridge", "jitter", "memory")
        check_positive(self, "step_size", "step_growth")


@dataclass(frozen=True)
class OfflineConfig:
    """POWR on a fixed dataset."""

    planner: KernelPlannerConfig = field(
        default_factory=lambda: KernelPlannerConfig(centres=1000, ridge=1e-5, step_size=1.0, steps=10)
    )
    """Regression and mirror descent. Offline, a step of size 1 changes the log-odds of two choices by 1 if their values
    differ by the typical spread over choices; size x steps limits how far the policy moves from its start."""
    max_rows: int = 10000
    """Maximum transitions per task, drawn at random."""
    held_out: float = 0.1
    """Share of the episodes held out to measure the temporal-difference error."""
    candidates: str = "kmeans"
    """Choices for continuous actions: kmeans of the data's actions, grid, or none (an error for continuous actions)."""
    num_candidates: int = 16
    """Number of kmeans candidates."""
    grid: list[float] = field(default_factory=lambda: [-1.0, 0.0, 1.0])
    """Values per action component for grid."""
    action_scale: float = 1.0
    """Scale of the Gaussian kernel between actions, in median distances of the data."""
    start: str = "behaviour"
    """Initial policy: behaviour (estimated from the data) or uniform."""
    behaviour_points: int = 2000
    """Rows used to estimate the behaviour policy."""
    behaviour_scale: float = 0.25
    """Scale of the Gaussian kernel between states in that estimate, in median distances."""
    behaviour_floor: float = 0.1
    """Weight of the uniform policy in that estimate, in rows."""
    shift: str = "lowest"
    """lowest: shift rewards so that the smallest is 0 and pairs far from the data look worst. none: no shift, which is
    optimistic for negative rewards. `planner.reward_offset` is added to either."""
    penalty: float = 0.0
    """Penalty per posterior standard deviation of a pair's value, in units of the spread of values over choices."""

    def __post_init__(self) -> None:
        check_choices(self, candidates=CANDIDATES, start=STARTS, shift=SHIFTS)
        check_counts(self, "max_rows", "num_candidates", "behaviour_points")
        check_positive(self, "action_scale", "behaviour_scale", "behaviour_floor")
        check_not_negative(self, "penalty")
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"held_out must lie in [0, 1), found {self.held_out}")
        if not self.grid or max(map(abs, self.grid)) > 1:
            raise ConfigError(f"grid: actions lie in [-1, 1], found {self.grid}")


@dataclass(frozen=True)
class PowrConfig:
    """Policies to plan, and on which features."""

    tasks: list[str] = field(default_factory=list)
    """Tasks of the store. Empty: all."""
    states: str = "raw"
    """Kernel input: raw (standardised observations) or latent (whitened latents of the run's world model)."""
    components: int = 16
    """Principal components kept of latents."""
    kernel: str = "laplace"
    """State kernel: laplace, gaussian, product_laplace, linear or delta. One-hot observations always use delta."""
    scale: float = 3.0
    """Kernel scale, in median distances between states of the data."""
    offline: OfflineConfig = field(default_factory=OfflineConfig)
    """Data, choices, initial policy and pessimism."""
    action: str = "mode"
    """Action of the policy: the most likely choice (mode), or, for continuous actions, the mean over choices (mean)."""
    seeds: int = 2
    """Policies per task; they differ in sampled rows, centres and candidates."""
    seed: int = 0
    """Random seed."""
    accelerator: str = "auto"
    """Device: cpu, cuda (alias gpu), or auto (a GPU if there is one)."""
    fanout: FanoutConfig = field(default_factory=FanoutConfig)
    """Jobs; with policies_per_job=0, one per task."""

    def __post_init__(self) -> None:
        check_choices(self, states=STATES, kernel=KERNELS, action=ACTIONS)
        check_accelerator(self)
        if self.scale <= 0:
            raise ConfigError(f"scale: a kernel's scale must be positive, found {self.scale}")
        check_counts(self, "seeds", "components")


@dataclass(frozen=True)
class PowrOnlineConfig:
    """Online POWR in one environment with discrete actions."""

    task: str = ""
    """Task name such as gymnasium/CartPole-v1."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment, for example {is_slippery: false}."""
    kernel: str = "laplace"
    """State kernel: delta (for repeating states), laplace, gaussian, product_laplace or linear."""
    scale: list[float] = field(default_factory=lambda: [1.0])
    """Kernel scale in units of the observation: one for all components, or one per component."""
    planner: KernelPlannerConfig = field(default_factory=KernelPlannerConfig)
    """Regression and mirror descent."""
    discount: float = 0.99
    """Discount per step."""
    transitions: int = 10000
    """Budget in transitions; learning ends after the epoch that reaches it."""
    warmup_episodes: int = field(default=3, metadata={"renamed_from": "warm_up_episodes"})
    """Episodes of the uniform policy before the first epoch."""
    episodes: int = 3
    """Episodes per epoch."""
    replan_every: int = 0
    """Also improve the policy within episodes, every so many transitions, if they contain a new state-action pair;
    otherwise optimistic exploration repeats it until the episode ends. 0 = between epochs only."""
    evaluation_episodes: int = 10
    """Episodes per evaluation with the greedy policy, and as many with sampled actions; learning does not see them."""
    evaluate_every: int = 1
    """Minimum transitions between evaluations, which follow an epoch."""
    threshold: float | None = None
    """Return at which the environment counts as solved; drawn as a dashed line."""
    seeds: int = 5
    """Independent runs."""
    seed: int = 0
    """Random seed."""
    fanout: FanoutConfig = field(default_factory=FanoutConfig)
    """Jobs, whose seeds learn in parallel. With policies_per_job=0: one per seed; with executor=inline, one for all."""

    def __post_init__(self) -> None:
        check_counts(
            self, "transitions", "warmup_episodes", "episodes", "evaluation_episodes", "evaluate_every", "seeds"
        )
        check_not_negative(self, "replan_every")
        check_choices(self, kernel=KERNELS)
        if not self.scale or min(self.scale) <= 0:
            raise ConfigError(f"scale: a kernel's scales must be positive, found {self.scale}")
        if not 0 <= self.discount < 1:
            raise ConfigError(f"discount must lie in [0, 1), found {self.discount}")


def discrete_task(name: str, environment: dict[str, Any]) -> TaskSpec:
    """The spec of a task with these arguments of its environment.

    Raises:
        TaskError: there is no such task. ConfigError: its actions are continuous.
    """
    from ...datasets.tasks import task_spec

    spec = task_spec(name)
    if spec.action_kind != "discrete":
        raise ConfigError(
            f"{name} has continuous actions, but powr_online needs discrete ones. Collect data and use the stage powr, "
            "which takes candidates from the data or a grid"
        )
    if environment:
        spec = dataclasses.replace(spec, environment={**spec.environment, "kwargs": dict(environment)})
    return spec
