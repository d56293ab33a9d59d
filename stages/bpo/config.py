"""Configs of the stages bpo and bpo_online. Reading them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...pipeline.config.checks import check_choices, check_counts, check_not_negative, check_shares
from ...pipeline.errors import ConfigError
from ...pipeline.jobs.config import FanoutConfig
from ..sequence_model.config import REWARDS, SequenceModelConfig
from ..training.config import check_loggers

GRADIENTS = ("model", "simulator")
FINISHED_FILE = "finished.json"
"""Of a job: its policies' index entries, and their curves."""


def algorithm_name(gradient: str, kind: str | None) -> str:
    """What policies by this gradient are reported as; `kind` is the model's."""
    return f"bpo_{kind if gradient == 'model' else gradient}"


@dataclass(frozen=True)
class BpoConfig:
    """Policy optimisation by backpropagation through full imagined episodes (Ma et al., section 4)."""

    horizon: int = 0
    """Imagined steps; 0 = the model's horizon or the episode length, whichever is shorter."""
    batch_size: int = 16
    """Imagined episodes per policy and iteration."""
    units: tuple[int, ...] = (64, 64)
    """Hidden widths of the policy."""
    lr: float = 1e-3
    """Learning rate (Adam); Ma et al. use 1e-4 with 219 updates."""
    final_lr_scale: float = 1.0
    """Linear schedule: the learning rate at the last iteration is `lr` times this; 1 = constant."""
    clip_norm: float = 100.0
    """Maximum gradient norm of each policy."""
    entropy: float = 0.01
    """Weight of the policy's mean entropy per step, against returns in standard deviations of the data."""
    policy_input_gradient: float = 0.0
    """Share of the gradient that flows from the policy into its input state. 0 stops it, which keeps the gradient paths
    of an AWM short."""
    reward: str = "auto"
    """simulator: the true reward, from the task's simulator. learned: the model's reward head. auto: simulator if there
    is one."""

    def __post_init__(self) -> None:
        check_choices(self, reward=REWARDS)
        check_counts(self, "batch_size")
        check_not_negative(self, "horizon", "entropy")
        check_shares(self, "policy_input_gradient")


@dataclass(frozen=True)
class OnlineConfig:
    """Online loop of Ma et al.: model and policy are updated between steps of one environment."""

    steps: int = field(default=5000, metadata={"renamed_from": "decisions"})
    """Environment steps, in full episodes. A step includes the action repeat."""
    warmup: int = field(default=1500, metadata={"renamed_from": "warm_up"})
    """Steps before the first update, with the initial policy noise."""
    model_every: int = 2
    """Steps per model update."""
    policy_every: int = 16
    """Steps per policy update."""
    batch_size: int = 64
    """Sequences per model update."""
    model_lr: float = 1e-3
    """Learning rate of the model (Adam)."""
    bpo: BpoConfig = field(default_factory=BpoConfig)
    """Policy updates."""


@dataclass(frozen=True)
class BpoStageConfig:
    """Policies to train, and how."""

    bpo: BpoConfig = field(default_factory=BpoConfig)
    """Rollouts, policy and optimiser."""
    gradients: list[str] = field(default_factory=lambda: ["model"])
    """model: through the sequence model; reported as bpo_KIND, for example bpo_awm. simulator: through the task's
    differentiable simulator, an upper baseline; reported as bpo_simulator."""
    tasks: list[str] = field(default_factory=list)
    """Tasks of the store. Empty: all."""
    seeds: int = 2
    """Policies per task and gradient."""
    iterations: int = 500
    """Updates per policy."""
    starts_per_task: int = 16384
    """Maximum dataset frames used as start states of imagined episodes."""
    log_every: int = 10
    """Iterations between logged metrics."""
    loggers: list[str] | None = None
    """Loggers of training metrics, by default those of the run: csv, tensorboard, wandb, mlflow."""
    seed: int = 0
    """Random seed."""
    fanout: FanoutConfig = field(default_factory=FanoutConfig)
    """Jobs; with policies_per_job=0, one per task and gradient."""

    def __post_init__(self) -> None:
        check_loggers(self)
        check_counts(self, "seeds", "iterations", "starts_per_task", "log_every")
        if not self.gradients or set(self.gradients) - set(GRADIENTS):
            raise ConfigError(f"bpo.gradients: expected some of {', '.join(GRADIENTS)}, found {self.gradients}")


@dataclass(frozen=True)
class BpoOnlineConfig:
    """Tasks to learn online, and the model."""

    online: OnlineConfig = field(default_factory=OnlineConfig)
    """Budget and updates."""
    model: SequenceModelConfig = field(default_factory=SequenceModelConfig)
    """The sequence model."""
    tasks: list[str] = field(default_factory=list)
    """Tasks of the suite myriad."""
    seeds: int = 2
    """Runs per task."""
    loggers: list[str] | None = None
    """Loggers of training metrics, by default those of the run: csv, tensorboard, wandb, mlflow."""
    seed: int = 0
    """Random seed."""
    fanout: FanoutConfig = field(default_factory=FanoutConfig)
    """Jobs, one per run."""

    def __post_init__(self) -> None:
        check_loggers(self)
        check_counts(self, "seeds")
