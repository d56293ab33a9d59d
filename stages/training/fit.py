"""Training by Lightning as a stage or a job does it: exact resume, a log per attempt, signals; and what it logged."""

from __future__ import annotations

import dataclasses
import inspect
import io
import math
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import lightning
import pandas as pd
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from ...datasets.datamodule import WindowData
from ...pipeline import termination
from ...pipeline.accelerator import device_of, matmul_precision, narrows
from ...pipeline.errors import StageError
from ...pipeline.ranks import WorkerGroup
from .checkpoints import Checkpoints
from .config import OptimizerConfig, TrainerConfig
from .loggers import LogPlace, close, make_loggers
from .module import ModelTraining
from .progress import StepProgress, quiet_lightning
from .ranks import (
    EndWithParent,
    StartedTogether,
    connected,
    meeting_point,
    pass_on_termination,
    started_here,
)


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
    @property
    def loggers(self) -> list[str] | None: ...


class TrainingContext(LogPlace, Protocol):
    """Where it is done: the Context of a stage, or of a job."""

    @property
    def folder(self) -> Path: ...
    @property
    def threads(self) -> int: ...
    @property
    def progress(self) -> Any: ...


def fit(
    module: ModelTraining,
    data: WindowData,
    config: TrainingConfig,
    description: str,
    place: TrainingContext,
    team: WorkerGroup | None = None,
) -> None:
    """Train `module` to `config.steps`, from the checkpoint that an interrupted attempt left in `place.folder`.

    Args:
        description: heading of its progress.
        team: the processes that train it together, where they were not started here.
    Raises:
        StageError: one of them is missing, or was lost.
        Terminated: a signal asked for the end; what was done is saved, and the same call continues.
    """
    quiet_lightning()
    torch.set_num_threads(place.threads)
    folder = place.folder
    last = folder / "checkpoints" / "last.ckpt"
    # One log folder per attempt: Lightning's CSV logger empties the folder that it starts in.
    attempt = f"attempt_{len(list((folder / 'logs').glob('attempt_*')))}"
    if config.trainer.nodes > 1 and team is None:
        raise StageError(
            f"{description}: trainer.nodes is {config.trainer.nodes}, but this process trains alone; set it to 1"
        )
    begin = {"checkpoint": str(last) if last.is_file() else None, **meeting_point()}
    environment = LightningEnvironment()  # not what Lightning would find: SLURM's describes processes that are not ours
    if team is not None:
        begin = dict(team.meet(begin))
        environment = StartedTogether(team.launch, config.trainer.devices, begin["address"], begin["port"])
    loggers = make_loggers(("tensorboard",) if config.loggers is None else config.loggers, place)
    trainer = lightning.Trainer(
        max_steps=config.steps,
        accelerator=device_of(config.trainer.accelerator).type,  # Lightning's own auto may take other kinds
        devices=config.trainer.devices,
        num_nodes=config.trainer.nodes,
        plugins=[environment],
        strategy=_strategy(config.trainer.launched_strategy, team),
        precision=_precision(config.trainer, module),  # type: ignore[arg-type]
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
            ValidateLastStep(),
            LogSettings(loggers, config),
        ],
        logger=[
            # Flushed with every row: what was logged before a checkpoint must outlive a kill after it.
            CSVLogger(folder, name="logs", version=attempt, flush_logs_every_n_steps=1),
            *loggers,
        ],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with termination.deferred(pass_on_termination), started_here() if team is None else connected(), matmul_precision():
        trainer.fit(module, data, ckpt_path=begin["checkpoint"])
    close(loggers, "success")


class LogSettings(lightning.Callback):
    """Logs the config of the stage as hyperparameters when training starts."""

    def __init__(self, loggers: Sequence[Logger], config: Any) -> None:
        self._loggers, self._config = loggers, config

    def on_fit_start(self, *args: Any) -> None:
        for logger in self._loggers:
            logger.log_hyperparams(dataclasses.asdict(self._config))


class ValidateLastStep(lightning.Callback):
    """Validates what is saved in the end, also where the interval does not reach it: Lightning validates before it
    stops early, but not before it stops at `max_steps`."""

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any, **kwargs: Any) -> None:
        trainer.should_stop = trainer.global_step == trainer.max_steps


def _precision(trainer: TrainerConfig, module: ModelTraining) -> str:
    """What Lightning takes."""
    if trainer.precision != "auto":
        return trainer.precision
    return "bf16-mixed" if narrows("auto", device_of(trainer.accelerator), module.width) else "32-true"


_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # in torch 2.13
_KEEP_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}
"""Buffers are constants, or computed alike on every rank: sending them costs as much as the gradients."""


def _strategy(name: str, team: WorkerGroup | None) -> Any:
    """What Lightning takes."""
    if team is not None:
        return DDPStrategy(timeout=timedelta(seconds=team.limit_seconds), **_KEEP_BUFFERS)
    return DDPStrategy(start_method="spawn", **_KEEP_BUFFERS) if name == "ddp_spawn" else name


def _read_log(file: Path) -> pd.DataFrame:
    """The complete rows of an attempt's metrics. A kill or a full disk may have cut off the last, or all of them."""
    complete, newline, _ = file.read_text(encoding="utf-8").rpartition("\n")
    return pd.read_csv(io.StringIO(complete)) if newline else pd.DataFrame()


def logged_metrics(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Logged metrics of all attempts: training losses by step, and open-loop errors by (step, task, horizon)."""
    attempts = sorted((folder / "logs").glob("attempt_*/metrics.csv"), key=lambda path: int(path.parent.name[8:]))
    logs = [log for path in attempts if len(log := _read_log(path))]
    # None if training was shorter than the interval of logging and had nothing to validate on.
    logged = pd.concat(logs, ignore_index=True) if logs else pd.DataFrame({"step": pd.Series(dtype=int)})
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
