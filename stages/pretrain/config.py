"""Config of the stage pretrain. Reading it imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from ...datasets.schema import BEHAVIOURS
from ...pipeline.config.checks import check_choices, check_counts
from ...pipeline.errors import ConfigError
from ..sequence_model.config import SequenceLossConfig, SequenceModelConfig
from ..training.config import OptimizerConfig, TrainerConfig, check_loggers
from ..world_model.config import LossConfig, WorldModelConfig

KINDS = ("latent", "sequence")


@dataclass(frozen=True)
class PretrainConfig:
    """Training of the world model."""

    kind: str = field(default="latent", metadata={"renamed_from": "world_model"})
    """latent: encoder, dynamics and heads, for extract and planning (`model`, `loss`). sequence: a model of
    observations given actions, for bpo (`sequence`, `sequence_loss`)."""
    model: WorldModelConfig = field(default_factory=WorldModelConfig)
    """The latent model."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Loss weights of the latent model."""
    sequence: SequenceModelConfig = field(default_factory=SequenceModelConfig)
    """The sequence model."""
    sequence_loss: SequenceLossConfig = field(default_factory=SequenceLossConfig)
    """Losses of the sequence model."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimiser and learning-rate schedule."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Settings of lightning.Trainer."""
    start_from: str = ""
    """Initialise the weights from an earlier model with the same settings and tasks: a folder, a run or a Hub id.
    Optimiser and schedule start fresh."""
    steps: int = 2500
    """Optimiser steps."""
    batch_size: int = 256
    """Windows per device and step, over all tasks."""
    horizon: int = 5
    """Training-window length in steps; the model is unrolled over it open loop."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Relative share of each task in a batch. Tasks without an entry use `behaviour_mixture`, or 1."""
    behaviour_mixture: dict[str, float] = field(default_factory=dict)
    """Relative share of tasks by how their data was collected: exploration, expert, policy, replay or unknown."""
    reward_windows: float = 0.0
    """Minimum share of a task's training windows with a reward above half its maximum: such windows are drawn more
    often where they are rarer. 0 = draw all windows uniformly."""
    reward_balance: float = 30.0
    """Maximum factor by which the reward loss of sparse tasks is scaled up to that of dense tasks; 1 = off."""
    held_out: float = 0.05
    """Fraction of each task's episodes held out for validation."""
    load_up_to_gb: float = 2.0
    """Load a store up to this size in GB into the memory of each training device, for faster sampling; memory-map a
    larger one. 0 = always memory-map."""
    validate_every: int = 500
    """Steps between validations; the last step is always validated."""
    validation_batches: int = 8
    """Batches of held-out windows per validation."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""
    loggers: list[str] | None = None
    """Loggers of training metrics, by default those of the run: csv, tensorboard, wandb, mlflow. null = tensorboard."""
    seed: int = 0
    """Random seed (initial weights, order of windows)."""

    def __post_init__(self) -> None:
        check_loggers(self)
        check_counts(self, "steps", "batch_size", "horizon", "validate_every", "validation_batches", "checkpoint_every")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"pretrain.held_out must lie between 0 and 1, found {self.held_out}")
        if not 0 <= self.reward_windows < 1:
            raise ConfigError(f"pretrain.reward_windows must lie in [0, 1), found {self.reward_windows}")
        if unknown := sorted(set(self.behaviour_mixture) - set(BEHAVIOURS)):
            raise ConfigError(f"pretrain.behaviour_mixture: expected {', '.join(BEHAVIOURS)}, found {unknown}")
        for key in ("mixture", "behaviour_mixture"):
            if negative := [name for name, weight in getattr(self, key).items() if not weight >= 0]:
                raise ConfigError(f"pretrain.{key}: weights must not be negative, but are for {', '.join(negative)}")
        check_choices(self, kind=KINDS)
        if self.kind == "sequence" and self.horizon > self.sequence.horizon:
            raise ConfigError(
                f"pretrain.horizon {self.horizon} is longer than the {self.sequence.horizon} steps of "
                "pretrain.sequence.horizon"
            )
        positions = self.sequence.longest_prediction() or 0
        if self.kind == "sequence" and self.horizon < positions:
            raise ConfigError(
                f"pretrain.horizon {self.horizon} would leave {positions - self.horizon} of the {positions} positions "
                f"of the {self.sequence.kind} model untrained; set pretrain.horizon and pretrain.sequence.horizon to "
                "the same value"
            )
        if self.model.dynamics == "awm" and self.model.awm_horizon not in (-1, self.horizon):
            raise ConfigError(
                f"pretrain.model.awm_horizon is {self.model.awm_horizon} and pretrain.horizon {self.horizon}: windows "
                "of this length would leave positions untrained or exceed them; set pretrain.horizon only"
            )
        if self.kind == "sequence" and self.trainer.compile:
            raise ConfigError("pretrain.trainer.compile is for pretrain.kind=latent; remove it for a sequence model")
        check_counts(self, "reward_balance")

    @property
    def latent_model(self) -> WorldModelConfig:
        """`model`, with `awm_horizon` set to the training horizon for action-model dynamics."""
        if self.model.dynamics == "step":
            return self.model
        return dataclasses.replace(self.model, awm_horizon=self.horizon)
