"""Config of the stage finetune. Reading it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...pipeline.config.checks import check_choices, check_counts
from ...pipeline.errors import ConfigError
from ...pipeline.jobs.config import FanoutConfig
from ..training.config import OptimizerConfig, TrainerConfig
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
    """Which tasks are added, and what learns them."""

    tasks: list[str] = field(default_factory=list)
    """The new tasks, to refuse before anything runs those that the model has. All tasks of the store are added."""
    per_task: bool = False
    """Give each new task a model of its own, trained in a job of its own (`fanout`); extract takes each task's."""
    initial: str = "nearest"
    """First row of a new task's embedding. nearest: that of the old task as which the model predicts the new data best
    before training, by the open-loop error of its latents relative to predicting no change, on 512 windows. mean: of
    all old rows. random: as a new model's."""
    scaling: str = "best"
    """Of a new task's observations, where the model scales them. own: mean and standard deviation of its data. best:
    that or the nearest task's, if that has as many components, whichever predicts better before training: a few
    episodes say little about the spread of states, and the model knows the nearest task's units."""
    train: str = "everything"
    """What learns, beside what is new (rows of the embedding, columns of larger observations and actions). embedding:
    nothing else, so that the old tasks keep every bit of what the model does on them. heads: reward, end of episode,
    values and policy prior too. dynamics: and the dynamics. everything: and the encoder and the old tasks' rows."""
    replay: float = 0.0
    """Share of every batch that is drawn from the old tasks' store (inputs.replay), to limit forgetting. With that
    store and 0, forgetting is only measured."""
    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 128
    """Windows per device and step, over all tasks."""
    horizon: int = 5
    """Decisions per window."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights of the losses."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Adam, which starts anew, and its schedule."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Passed to Lightning."""
    reward_balance: float = 30.0
    """Largest factor by which a sparse task's reward loss is raised; 1 turns it off."""
    held_out: float = 0.05
    """Fraction of the episodes of each task that only validation sees. With at most the fraction of pretraining, the
    model has never seen those of the old tasks."""
    load_up_to_gb: float = 2.0
    """Each of the two stores is loaded into memory up to this size, and read through a memory map above it."""
    validate_every: int = 250
    """Steps between validations; the last step is always validated."""
    validation_batches: int = 8
    """Batches of windows of held-out episodes per validation."""
    checkpoint_every: int = 250
    """Steps between checkpoints for resuming."""
    seed: int = 0
    """Of window order and of what is drawn."""
    fanout: FanoutConfig = field(default_factory=FanoutConfig)
    """Where the jobs of `per_task` run."""

    def __post_init__(self) -> None:
        check_counts(self, "steps", "batch_size", "horizon", "validate_every", "validation_batches", "checkpoint_every")
        check_choices(self, initial=INITIAL, scaling=SCALING, train=TRAIN)
        if not 0 < self.held_out < 1:
            raise ConfigError(f"finetune.held_out must lie between 0 and 1, found {self.held_out}")
        if not 0 <= self.replay < 1:
            raise ConfigError(f"finetune.replay is a share of the batch, at least 0 and below 1; found {self.replay}")
        if self.replay and not 0 < self.replayed_windows < self.batch_size:
            raise ConfigError(
                f"finetune.replay {self.replay} of a batch of {self.batch_size} leaves old or new tasks no window"
            )
        if self.trainer.nodes > 1:
            raise ConfigError("finetune.trainer.nodes: finetuning runs on one node; use finetune.trainer.devices")
        check_counts(self, "reward_balance")

    @property
    def replayed_windows(self) -> int:
        """Of every batch."""
        return round(self.replay * self.batch_size)
