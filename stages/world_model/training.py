"""Training by Lightning as a stage or a job does it: exact resume, a log per attempt, SIGTERM; and what it logged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import lightning
import pandas as pd
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from ...datasets.datamodule import WindowData
from ...pipeline import termination
from .checkpoints import Checkpoints
from .config import OptimizerConfig, TrainerConfig
from .progress import StepProgress, quiet_lightning
from .ranks import EndWithParent, pass_on_termination


class TrainingConfig(Protocol):
    """Settings of pretraining and finetuning that decide how, not what, is trained."""

    @property
    def steps(self) -> int: ...
    @property
    def validate_every(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def trainer(self) -> TrainerConfig: ...


class Place(Protocol):
    """Where it is done: the Context of a stage, or of a job."""

    @property
    def folder(self) -> Path: ...
    @property
    def threads(self) -> int: ...
    @property
    def progress(self) -> Any: ...


def fit(
    module: lightning.LightningModule, data: WindowData, config: TrainingConfig, description: str, place: Place
) -> None:
    """Train `module` to `config.steps`, from the checkpoint that an interrupted attempt left in `place.folder`.

    Args:
        description: heading of its progress.
    Raises:
        Terminated: SIGTERM; what was done is saved, and the same call continues.
    """
    quiet_lightning()
    torch.set_num_threads(place.threads)
    folder = place.folder
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
        limit_val_batches=1.0 if data.has_held_out() else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=config.trainer.log_every,
        callbacks=[
            StepProgress(place.progress, config.steps, description),
            EndWithParent(),
            Checkpoints(last, config.checkpoint_every),
        ],
        logger=[
            # Flushed with every row: what was logged before a checkpoint must outlive a kill after it.
            CSVLogger(folder, name="logs", version=attempt, flush_logs_every_n_steps=1),
            TensorBoardLogger(folder, name="tensorboard", version=""),
        ],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with termination.deferred(pass_on_termination):
        trainer.fit(module, data, ckpt_path=last if last.is_file() else None)


def _strategy(name: str) -> Any:
    """What Lightning takes. Buffers are constants, or computed alike on every rank: sending them costs as much as the
    gradients."""
    return DDPStrategy(start_method="spawn", forward_sync_buffers=False) if name == "ddp_spawn" else name


def logged_metrics(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Logged metrics of all attempts: training losses by step, and open-loop errors by (step, task, horizon)."""
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
