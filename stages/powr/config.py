"""Names and settings that several modules share. Apart from them so that reading a config imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...pipeline.accelerator import check_accelerator
from ...pipeline.config.checks import check_choices, check_counts, check_not_negative, check_positive
from ...pipeline.errors import ConfigError

if TYPE_CHECKING:
    from ...datasets.schema import TaskSpec

STATES = ("raw", "latent")
ACTIONS = ("mode", "mean")

KERNELS = ("delta", "laplace", "gaussian", "product_laplace", "linear")
"""Kernels of states, see `kernels`."""

SELECTIONS = ("uniform", "distinct", "cholesky")
"""Ways to choose centres, see `centres`."""

SINKS = ("all", "taken")
"""Actions that get a sink row at a terminal state."""

CANDIDATES = ("kmeans", "grid", "none")
STARTS = ("behaviour", "uniform")
SHIFTS = ("lowest", "none")


@dataclass(frozen=True)
class KernelPlannerConfig:
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
    """Regression and mirror descent. Here a step of size 1 moves the log-odds of two choices by 1 where their values
    are as far apart as values typically are over choices; size x steps is how far the policy may leave its start."""
    max_rows: int = 10000
    """Transitions used of each task, drawn at random where it has more."""
    held_out: float = 0.1
    """Share of the episodes kept for the temporal-difference error alone."""
    candidates: str = "kmeans"
    """Choices where actions are continuous: kmeans of the data's actions, grid, or none (an error there)."""
    num_candidates: int = 16
    """Of kmeans."""
    grid: list[float] = field(default_factory=lambda: [-1.0, 0.0, 1.0])
    """Values per action component of grid."""
    action_scale: float = 1.0
    """Scale of the Gaussian kernel between actions, in median distances of the data's."""
    start: str = "behaviour"
    """Policy before the first step: behaviour (an estimate of what made the data) or uniform."""
    behaviour_points: int = 2000
    """Rows that the behaviour is estimated from."""
    behaviour_scale: float = 0.25
    """Scale of its Gaussian kernel between states, in median distances."""
    behaviour_floor: float = 0.1
    """Weight of the uniform policy in it, in rows."""
    shift: str = "lowest"
    """lowest moves the smallest reward of the data to 0, so that pairs far from the data look like the worst there is;
    none leaves rewards alone, which is optimistic where they are negative. planner.reward_offset is added to either."""
    penalty: float = 0.0
    """Taken off the value of a pair per posterior standard deviation, in units of the spread of values over choices."""

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
    """Which policies are planned, and on what."""

    tasks: list[str] = field(default_factory=list)
    """Tasks of the store; all of them where empty."""
    states: str = "raw"
    """What kernels compare: raw (standardised observations) or latent (of the run's world model, whitened)."""
    components: int = 16
    """Principal components kept of latents."""
    kernel: str = "laplace"
    """Of states: laplace, gaussian, product_laplace, linear or delta. One-hot observations always take delta."""
    scale: float = 3.0
    """Of the kernel, in median distances between states of the data."""
    offline: OfflineConfig = field(default_factory=OfflineConfig)
    """Data, choices, start and pessimism."""
    action: str = "mode"
    """The policy takes the most likely choice (mode), or, with continuous actions, their mean under it."""
    seeds: int = 2
    """Policies per task; they differ in rows, centres and candidates drawn."""
    seed: int = 0
    """Base of all randomness of this stage."""
    accelerator: str = "auto"
    """cpu, cuda (or gpu, the same), or auto: a GPU where there is one."""

    def __post_init__(self) -> None:
        check_choices(self, states=STATES, kernel=KERNELS, action=ACTIONS)
        check_accelerator(self)
        if self.scale <= 0:
            raise ConfigError(f"scale: a kernel's scale must be positive, found {self.scale}")
        check_counts(self, "seeds", "components")


@dataclass(frozen=True)
class PowrOnlineConfig:
    """One environment with discrete actions, learned from scratch."""

    task: str = ""
    """Name such as gymnasium/CartPole-v1."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment, for example {is_slippery: false}."""
    kernel: str = "laplace"
    """Of states: delta (states that repeat), laplace, gaussian, product_laplace or linear."""
    scale: list[float] = field(default_factory=lambda: [1.0])
    """Of the kernel, in the observation's units: one for all components, or one for each."""
    planner: KernelPlannerConfig = field(default_factory=KernelPlannerConfig)
    """Regression and mirror descent."""
    discount: float = 0.99
    """Per decision."""
    transitions: int = 10000
    """Learning ends with the epoch that reaches this many."""
    warm_up_episodes: int = 3
    """Played by the uniform policy before the first epoch."""
    episodes: int = 3
    """Collected per epoch."""
    replan_every: int = 0
    """Improve the policy within episodes too, after this many transitions, if a state and action among them is new:
    exploration by optimism would otherwise try it again until the episode ends. 0 improves between epochs alone."""
    evaluation_episodes: int = 10
    """Per evaluation, once greedily and once with sampled actions; learning never sees them."""
    evaluate_every: int = 1
    """Evaluate after the first epoch that is at least this many transitions later than the last evaluated one."""
    threshold: float | None = None
    """Return at which the environment counts as solved; a dashed line in the figure."""
    seeds: int = 5
    """Independent runs."""
    seed: int = 0
    """Base of all randomness of this stage."""

    def __post_init__(self) -> None:
        check_counts(
            self, "transitions", "warm_up_episodes", "episodes", "evaluation_episodes", "evaluate_every", "seeds"
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
            f"{name} has continuous actions and there is no candidate set: this stage needs discrete actions. Collect "
            "data and use the stage powr, whose candidates come from the data or a grid"
        )
    if environment:
        spec = dataclasses.replace(spec, environment={**spec.environment, "kwargs": dict(environment)})
    return spec
