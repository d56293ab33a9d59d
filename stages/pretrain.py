"""pretrain: one world model on all tasks of a store, frozen and published as safetensors + config + task table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..datasets.schema import BEHAVIOURS
from ..pipeline import termination
from ..pipeline.errors import ConfigError
from ..pipeline.stage import Context, Input, Stage
from .awm.config import SequenceLossConfig, SequenceModelConfig
from .world_model.config import LossConfig, OptimizerConfig, TrainerConfig, WorldModelConfig

if TYPE_CHECKING:
    import pandas as pd

    from ..datasets.store import TaskStore

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
    """Steps between validations."""
    validation_batches: int = 8
    """Batches of windows of 16 decisions per validation."""
    checkpoint_every: int = 250
    """Steps between checkpoints for resuming."""
    seed: int = 0
    """Of initial weights and window order."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "horizon", "validate_every", "validation_batches", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"pretrain.{name} must be at least 1, found {getattr(self, name)}")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"pretrain.held_out must lie between 0 and 1, found {self.held_out}")
        if unknown := sorted(set(self.behaviour_mixture) - set(BEHAVIOURS)):
            raise ConfigError(f"pretrain.behaviour_mixture: expected {', '.join(BEHAVIOURS)}, found {unknown}")
        if self.world_model not in WORLD_MODELS:
            raise ConfigError(f"world_model: expected {', '.join(WORLD_MODELS)}, found {self.world_model!r}")
        if self.world_model == "sequence" and self.horizon > self.sequence.horizon:
            raise ConfigError(
                f"pretrain.horizon {self.horizon} is longer than the {self.sequence.horizon} decisions of "
                "pretrain.sequence.horizon"
            )
        if self.reward_balance < 1:
            raise ConfigError(f"pretrain.reward_balance must be at least 1, found {self.reward_balance}")


class Pretrain(Stage):
    """One shared multi-task world model."""

    Config = PretrainConfig
    inputs = {"store": Input("store")}
    output_kind = "world_model"
    config: PretrainConfig

    def run(self, context: Context) -> str:
        import torch

        from ..datasets.store import TaskStore

        config = self.config
        store = TaskStore.open(context.input("store"))
        torch.manual_seed(config.seed)
        module, validation_length = self._latent(store) if config.world_model == "latent" else self._sequence(store)
        weights = mixture_weights(config, {task.spec.name: task.summary.behaviour for task in store.tasks})
        self._fit(module, weights, validation_length, context)
        module.model.save(context.folder)
        training, validation = _metrics(context.folder)
        training.to_csv(context.folder / "training.csv", index=False)
        validation.to_csv(context.folder / "validation.csv", index=False)
        return _summary(module.model, config.steps, validation)

    def _latent(self, store: TaskStore) -> tuple[Any, int]:
        """The latent model to be trained, and the decisions of a validation window."""
        import torch

        from .world_model.balance import reward_entropy, reward_weights
        from .world_model.module import WorldModelTraining
        from .world_model.networks import WorldModel
        from .world_model.open_loop import DIAGNOSED_HORIZONS

        config = self.config
        model = WorldModel(config.model, store.table)
        if config.model.normalize_observations:
            for k, task in enumerate(store.tasks):
                mean, std = torch.tensor([task.summary.observation_mean, task.summary.observation_std])
                model.set_observation_statistics(k, mean, std)
        entropy_K = reward_entropy(store, model.bins_M)
        module = WorldModelTraining(
            model,
            config.loss,
            config.optimizer,
            reward_weights(entropy_K, config.reward_balance),
            total_steps=config.steps,
            log_every=config.trainer.log_every,
            seed=config.seed,
        )
        return module, max(DIAGNOSED_HORIZONS)

    def _sequence(self, store: TaskStore) -> tuple[Any, int]:
        """The sequence model to be trained, and the decisions of a validation window."""
        from .awm.losses import set_statistics
        from .awm.module import SequenceModelTraining
        from .awm.networks import build_model

        config = self.config
        model = build_model(config.sequence, store.table)
        set_statistics(model, store)
        module = SequenceModelTraining(
            model,
            config.sequence_loss,
            config.optimizer,
            total_steps=config.steps,
            log_every=config.trainer.log_every,
            seed=config.seed,
        )
        return module, config.horizon

    def _fit(self, module: Any, weights: dict[str, float], validation_length: int, context: Context) -> None:
        import lightning
        import torch
        from lightning.pytorch.callbacks import ModelCheckpoint
        from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

        from ..datasets.datamodule import WindowData, WindowSettings
        from .world_model.progress import StepProgress, quiet_lightning
        from .world_model.ranks import EndWithParent, SaveOnTermination, pass_on_termination

        quiet_lightning()
        torch.set_num_threads(context.threads)
        config, folder = self.config, context.folder
        settings = WindowSettings(
            horizon=config.horizon,
            batch_size=config.batch_size,
            seed=config.seed,
            held_out=config.held_out,
            validation_length=validation_length,
            validation_batches=config.validation_batches,
            weights=weights,
            load_up_to_gb=config.load_up_to_gb,
        )
        last = folder / "checkpoints" / "last.ckpt"
        # One log folder per attempt: Lightning's CSV logger empties the folder that it starts in.
        attempt = f"attempt_{len(list((folder / 'logs').glob('attempt_*')))}"
        trainer = lightning.Trainer(
            max_steps=config.steps,
            accelerator=config.trainer.accelerator,
            devices=config.trainer.devices,
            strategy=_strategy(config.trainer.launched_strategy),
            precision=config.trainer.precision,  # type: ignore[arg-type]
            accumulate_grad_batches=config.trainer.accumulate,
            gradient_clip_val=config.optimizer.clip_norm,
            # In batches, which are micro-steps.
            val_check_interval=config.validate_every * config.trainer.accumulate,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            log_every_n_steps=config.trainer.log_every,
            callbacks=[
                ModelCheckpoint(
                    dirpath=last.parent,
                    filename="last",
                    every_n_train_steps=config.checkpoint_every,
                    save_on_train_epoch_end=False,
                    enable_version_counter=False,
                ),
                StepProgress(context.progress, config.steps),
                EndWithParent(),
                SaveOnTermination(last),
            ],
            logger=[
                # Flushed with every row: what was logged before a checkpoint must outlive a kill after it.
                CSVLogger(folder, name="logs", version=attempt, flush_logs_every_n_steps=1),
                TensorBoardLogger(folder, name="tensorboard", version=""),
            ],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = WindowData(context.input("store"), settings)
        with termination.deferred(pass_on_termination):
            trainer.fit(module, data, ckpt_path=last if last.is_file() else None)


def _strategy(name: str) -> Any:
    """What Lightning takes. Buffers are constants, or computed alike on every rank: sending them costs as much as the
    gradients."""
    from lightning.pytorch.strategies import DDPStrategy

    return DDPStrategy(start_method="spawn", forward_sync_buffers=False) if name == "ddp_spawn" else name


def mixture_weights(config: PretrainConfig, behaviours: Mapping[str, str]) -> dict[str, float]:
    """Mixture weight of every task, from the behaviours that made their data.

    Raises:
        ConfigError: `mixture` names a task that is not there.
    """
    if unknown := sorted(set(config.mixture) - set(behaviours)):
        raise ConfigError(f"pretrain.mixture names {unknown}, but the store holds: {', '.join(behaviours)}")
    by_behaviour = {name: config.behaviour_mixture.get(kind, 1.0) for name, kind in behaviours.items()}
    return {**by_behaviour, **config.mixture}


def _metrics(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Logged metrics of all attempts: training losses by step, and open-loop errors by (step, task, horizon)."""
    import pandas as pd

    attempts = sorted((folder / "logs").glob("attempt_*/metrics.csv"), key=lambda path: int(path.parent.name[8:]))
    logged = pd.concat([pd.read_csv(path) for path in attempts], ignore_index=True)
    losses = [column for column in logged if column.startswith("train/")] or ["train/total"]
    # An attempt repeats the steps since its checkpoint, with the same numbers; the later one is kept.
    training = (
        logged.reindex(columns=["step", *losses])
        .dropna(subset="train/total")
        .drop_duplicates("step", keep="last")
        .sort_values("step")
    )
    rows = []
    for column in logged:
        if not column.startswith(("reward_r2/", "latent_mse/", "observation_r2/")):
            continue
        metric, horizon, task = column.split("/", 2)
        for step, value in logged[["step", column]].dropna().itertuples(index=False):
            rows.append(
                {"step": int(step) + 1, "task": task, "horizon": int(horizon), "metric": metric, "value": value}
            )
    long = pd.DataFrame(rows, columns=["step", "task", "horizon", "metric", "value"])
    long = long.drop_duplicates(["step", "task", "horizon", "metric"], keep="last")
    wide = long.pivot(index=["step", "task", "horizon"], columns="metric", values="value").reset_index()
    if "reward_r2" not in wide:
        wide["reward_r2"] = math.nan  # a sequence model without a reward head
    return training, wide


def _summary(model: Any, steps: int, validation: pd.DataFrame) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    head = f"{parameters:,} parameters, {steps} steps"
    predicted = "observation" if "observation_r2" in validation else "reward"
    known = validation.dropna(subset=f"{predicted}_r2")
    if known.empty:
        return head
    last = known[(known.step == known.step.max()) & (known.horizon == known.horizon.max())]
    r2 = last[f"{predicted}_r2"]
    worst = last.loc[r2.idxmin()]
    return (
        f"open-loop {predicted} R2 {r2.median():.2f} median over tasks at {int(worst.horizon)} decisions, "
        f"worst {r2.min():.2f} ({worst.task}); {head}"
    )
