"""Config of the stage pretrain. Reading it imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from ...datasets.schema import BEHAVIOURS
from ...pipeline.config.checks import check_choices, check_counts
from ...pipeline.errors import ConfigError
from ..sequence_model.config import SequenceLossConfig, SequenceModelConfig
from ..training.config import OptimizerConfig, TrainerConfig
from ..world_model.config import LossConfig, WorldModelConfig

WORLD_MODELS = ("latent", "sequence")


@dataclass(frozen=True)
class PretrainConfig:
    """How the world model is trained."""

    world_model: str = "latent"
    """latent: encoder, dynamics and heads, for the stages extract and plan (`model`, `loss`). sequence: a model of
    observations from actions, for the stage bpo (`sequence`, `sequence_loss`)."""
    model: WorldModelConfig = field(default_factory=WorldModelConfig)
    """Sizes of the latent model."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights of the latent model's losses."""
    sequence: SequenceModelConfig = field(default_factory=SequenceModelConfig)
    """Kind and sizes of the sequence model."""
    sequence_loss: SequenceLossConfig = field(default_factory=SequenceLossConfig)
    """What the sequence model is trained on."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Adam and its schedule."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Passed to Lightning."""
    start_from: str = ""
    """An earlier model whose weights training begins with: a folder, a run or a Hub id. It has the same settings and
    tasks; optimiser and schedule start anew."""
    steps: int = 2500
    """Optimiser steps."""
    batch_size: int = 256
    """Windows per device and step, over all tasks."""
    horizon: int = 5
    """Decisions per window; the model is unrolled over them open loop."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Share of each task in a batch, any positive scale; a task not named counts by its behaviour, or 1."""
    behaviour_mixture: dict[str, float] = field(default_factory=dict)
    """The same by how a task's data was made: exploration, expert, policy or unknown."""
    reward_balance: float = 30.0
    """Largest factor by which a sparse task's reward loss is raised (see world_model/balance.py); 1 turns it off."""
    held_out: float = 0.05
    """Fraction of the episodes of each task that only validation sees."""
    load_up_to_gb: float = 2.0
    """A store of at most this many gigabytes is loaded into the memory of each training device at the start, which
    draws batches faster; a larger one is read from disk through a memory map. 0 always maps."""
    validate_every: int = 500
    """Steps between validations; the last step is always validated."""
    validation_batches: int = 8
    """Batches of windows of 16 decisions per validation."""
    checkpoint_every: int = 250
    """Steps between checkpoints for resuming."""
    seed: int = 0
    """Of initial weights and window order."""

    def __post_init__(self) -> None:
        check_counts(self, "steps", "batch_size", "horizon", "validate_every", "validation_batches", "checkpoint_every")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"pretrain.held_out must lie between 0 and 1, found {self.held_out}")
        if unknown := sorted(set(self.behaviour_mixture) - set(BEHAVIOURS)):
            raise ConfigError(f"pretrain.behaviour_mixture: expected {', '.join(BEHAVIOURS)}, found {unknown}")
        for key in ("mixture", "behaviour_mixture"):
            if negative := [name for name, weight in getattr(self, key).items() if not weight >= 0]:
                raise ConfigError(f"pretrain.{key}: weights must not be negative, found one for {', '.join(negative)}")
        check_choices(self, world_model=WORLD_MODELS)
        if self.world_model == "sequence" and self.horizon > self.sequence.horizon:
            raise ConfigError(
                f"pretrain.horizon {self.horizon} is longer than the {self.sequence.horizon} decisions of "
                "pretrain.sequence.horizon"
            )
        positions = self.sequence.longest_prediction() or 0
        if self.world_model == "sequence" and self.horizon < positions:
            raise ConfigError(
                f"pretrain.horizon {self.horizon} would leave {positions - self.horizon} of the {positions} positions "
                f"of the {self.sequence.kind} model untrained; set pretrain.horizon "
                "and pretrain.sequence.horizon alike"
            )
        if self.model.dynamics == "awm" and self.model.awm_horizon not in (-1, self.horizon):
            raise ConfigError(
                f"pretrain.model.awm_horizon is {self.model.awm_horizon} and pretrain.horizon {self.horizon}: windows "
                "of this length would leave positions untrained or run past them; set pretrain.horizon alone"
            )
        if self.world_model == "sequence" and self.trainer.compile:
            raise ConfigError("pretrain.trainer.compile is for world_model=latent; leave it out for a sequence model")
        check_counts(self, "reward_balance")

    @property
    def latent_model(self) -> WorldModelConfig:
        """`model`, with a position for every decision of a window where its dynamics are an action model."""
        if self.model.dynamics == "step":
            return self.model
        return dataclasses.replace(self.model, awm_horizon=self.horizon)
