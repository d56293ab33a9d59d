"""Configs of the stages bpo and bpo_online. Reading them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...pipeline.config.checks import check_choices, check_counts, check_not_negative, check_shares
from ...pipeline.errors import ConfigError
from ..sequence_model.config import SequenceModelConfig

GRADIENTS = ("model", "simulator")
REWARDS = ("auto", "simulator", "learned")


@dataclass(frozen=True)
class BpoConfig:
    """Policy optimisation by backpropagation through a whole imagined episode (Ma et al., section 4)."""

    horizon: int = 0
    """Imagined decisions; 0 takes the model's horizon, or the episode's length where that is shorter."""
    batch_size: int = 16
    """Imagined episodes per policy and iteration."""
    units: tuple[int, ...] = (64, 64)
    """Hidden widths of the policy."""
    lr: float = 1e-3
    """Adam; Ma et al. use 1e-4 with 219 updates."""
    final_lr_scale: float = 1.0
    """lr falls linearly to lr times this at the last iteration; 1 is constant."""
    clip_norm: float = 100.0
    """Gradient norm of each policy is clipped to this."""
    entropy: float = 0.01
    """Weight of the policy's mean entropy per decision, against returns in standard deviations of the data's."""
    policy_input_gradient: float = 0.0
    """Share of the gradient that reaches a predicted state through the policy that reads it. 0 cuts that path, which is
    what keeps the gradient paths of an AWM short."""
    reward: str = "auto"
    """simulator: the true one, which the task's simulator gives. learned: the model's reward head. auto: the true one
    where there is a simulator."""

    def __post_init__(self) -> None:
        check_choices(self, reward=REWARDS)
        check_counts(self, "batch_size")
        check_not_negative(self, "horizon", "entropy")
        check_shares(self, "policy_input_gradient")


@dataclass(frozen=True)
class OnlineConfig:
    """The loop of Ma et al.: one environment, model and policy updated between its decisions."""

    decisions: int = 5000
    """Of the environment, in whole episodes."""
    warm_up: int = 1500
    """Decisions before the first update; the policy acts with its initial noise."""
    model_every: int = 2
    """Decisions per update of the model."""
    policy_every: int = 16
    """Decisions per update of the policy."""
    batch_size: int = 64
    """Sequences per model update."""
    model_lr: float = 1e-3
    """Adam."""
    bpo: BpoConfig = field(default_factory=BpoConfig)
    """Policy updates."""


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
