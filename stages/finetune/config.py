"""Config of the stage finetune. Reading it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...pipeline.config.checks import check_choices, check_counts
from ...pipeline.errors import ConfigError
from ...pipeline.jobs.config import FanoutConfig
from ..training.config import OptimizerConfig, TrainerConfig, check_loggers
from ..world_model.config import LossConfig

ADDED = "added.json"
"""How the new tasks were added, and what was trained."""
FORGETTING = "forgetting.csv"
"""Open-loop error of every task with data, before and after: task, new, horizon, reward_r2_before, ..."""

INITIAL = ("nearest", "mean", "random")
SCALING = ("own", "best")
TRAIN = ("embedding", "heads", "dynamics", "everything")


@dataclass(frozen=True)
class FinetuneConfig:
    """The added tasks, and how they are trained."""

    tasks: list[str] = field(default_factory=list)
    """New tasks; an error before anything runs if the model already has one of them. All tasks of the store are
    added."""
    per_task: bool = False
    """Train one model per new task, each in its own job (`fanout`). extract uses the model of each task."""
    initial: str = "nearest"
    """Initial embedding of a new task. nearest: that of the old task that predicts the new data best, by open-loop
    latent error relative to predicting no change, on 512 windows. mean: mean over old tasks. random: as in a new
    model."""
    scaling: str = "best"
    """Observation scaling of a new task. own: mean and standard deviation of its own data. best: own, or the nearest
    task's if it has the same width and predicts better before training (a few episodes give poor statistics)."""
    train: str = "everything"
    """Trained parameters, in addition to the new ones (embedding rows, columns of larger observations and actions).
    embedding: none, so the model stays bitwise identical on old tasks. heads: reward, continue and value heads and
    policy prior. dynamics: heads and dynamics. everything: also the encoder and the old embedding rows."""
    replay: float = 0.0
    """Share of every batch drawn from the old tasks' store (`inputs.replay`), to limit forgetting. If that store is
    given, 0 only measures forgetting."""
    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 128
    """Windows per device and step, over all tasks."""
    horizon: int = 5
    """Training-window length in steps."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Loss weights."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimiser, which starts fresh, and learning-rate schedule."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Settings of lightning.Trainer."""
    reward_balance: float = 30.0
    """Maximum factor on the reward loss of sparse tasks; 1 = off."""
    held_out: float = 0.05
    """Fraction of each task's episodes held out for validation. With at most the fraction used in pretraining, the
    model has never seen the held-out episodes of old tasks."""
    load_up_to_gb: float = 2.0
    """Load each of the two stores into memory up to this size in GB; memory-map larger ones."""
    validate_every: int = 250
    """Steps between validations; the last step is always validated."""
    validation_batches: int = 8
    """Batches of held-out windows per validation."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""
    loggers: list[str] | None = None
    """Loggers of training metrics, by default those of the run: csv, tensorboard, wandb, mlflow. null = tensorboard."""
    seed: int = 0
    """Random seed."""
    fanout: FanoutConfig = field(default_factory=FanoutConfig)
    """Jobs of `per_task`."""

    def __post_init__(self) -> None:
        check_loggers(self)
        check_counts(self, "steps", "batch_size", "horizon", "validate_every", "validation_batches", "checkpoint_every")
        check_choices(self, initial=INITIAL, scaling=SCALING, train=TRAIN)
        if not 0 < self.held_out < 1:
            raise ConfigError(f"finetune.held_out must lie between 0 and 1, found {self.held_out}")
        if not 0 <= self.replay < 1:
            raise ConfigError(f"finetune.replay must be at least 0 and below 1, found {self.replay}")
        if self.replay and not 0 < self.replayed_windows < self.batch_size:
            raise ConfigError(
                f"finetune.replay {self.replay} of a batch of {self.batch_size} leaves no window for old or for new "
                "tasks"
            )
        if self.trainer.nodes > 1:
            raise ConfigError("finetune.trainer.nodes: finetuning runs on one node; use finetune.trainer.devices")
        check_counts(self, "reward_balance")

    @property
    def replayed_windows(self) -> int:
        """Replayed windows per batch."""
        return round(self.replay * self.batch_size)
