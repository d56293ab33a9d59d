"""Lightning's loggers for every stage that learns: CSV, TensorBoard, Weights & Biases, MLflow.

They write to the run's folder `logs`, beside the artifacts, whose content they do not change: csv/STAGE,
tensorboard/STAGE, wandb/, mlflow.db. Stages that train with Lightning pass them to its Trainer, others log rows by
`logging_rows`. Lightning is imported when there is a logger.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

PROJECT = "orrery"
"""Of Weights & Biases."""
_ROW = ("iteration", "algorithm", "task", "seed")


class LogPlace(Protocol):
    """The Context of a stage, or of a job."""

    @property
    def logs(self) -> Path: ...
    @property
    def logged_as(self) -> str: ...
    @property
    def log(self) -> logging.Logger: ...


def make_loggers(names: Sequence[str], place: LogPlace) -> list[Logger]:
    """The loggers of one stage, or of one job of it."""
    return [_MAKERS[name](place) for name in names]


def _csv(place: LogPlace) -> Logger:
    from lightning.pytorch.loggers import CSVLogger

    folder = place.logs / "csv" / place.logged_as
    # Lightning's CSV logger empties the folder that it starts in.
    return CSVLogger(folder, name="", version=f"attempt_{len(list(folder.glob('attempt_*')))}")


def _tensorboard(place: LogPlace) -> Logger:
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(place.logs / "tensorboard", name=place.logged_as, version="")


def _wandb(place: LogPlace) -> Logger:
    from lightning.pytorch.loggers import WandbLogger

    os.environ.setdefault("WANDB_SILENT", "true")
    place.logs.mkdir(parents=True, exist_ok=True)
    mode = os.environ.get("WANDB_MODE", "online" if _logged_in() else "offline")
    if mode == "offline":
        _say_offline(place.log, place.logs)
    run = place.logs.parent.name
    # Lightning sets resume="allow", with which wandb 0.31 writes nothing when it is offline.
    logger = WandbLogger(
        name=f"{run}/{place.logged_as}", group=run, project=PROJECT, save_dir=place.logs, mode=mode, resume=None
    )
    logger._wandb_init.pop("anonymous", None)  # wandb 0.31 warns of it, whatever it says
    return logger


@functools.cache
def _say_offline(log: logging.Logger, logs: Path) -> None:
    """Once per process and run, not for each of its stages and jobs."""
    log.info("wandb: offline; to upload, run `wandb login` and `wandb sync %s/wandb/offline-*`", logs)


def _logged_in() -> bool:
    """Whether there is a key of Weights & Biases: in the environment, or in the file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc(os.environ.get("NETRC")).hosts
    except (OSError, NetrcParseError):
        return False
    return any("wandb" in host for host in hosts)


def _mlflow(place: LogPlace) -> Logger:
    import mlflow  # noqa: F401  sets the level of its messages, which are about its tables
    from lightning.pytorch.loggers import MLFlowLogger

    class LegibleNames(MLFlowLogger):
        """MLflow takes no @ in a name; Lightning would leave it out, and pwm@0.3 be pwm0.3."""

        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            super().log_metrics({name.replace("@", "-"): value for name, value in metrics.items()}, step)

    for name in ("mlflow", "alembic", "lightning.pytorch.loggers.mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    place.logs.mkdir(parents=True, exist_ok=True)
    file = place.logs / "mlflow.db"
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{file.absolute()}"
    logger = LegibleNames(
        place.logs.parent.name,
        run_name=place.logged_as,
        tracking_uri=uri,
        artifact_location=str(place.logs.absolute() / "mlflow"),
    )
    # Jobs that start together would all make the tables of a new database.
    with (place.logs / "mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        logger.experiment.search_experiments(max_results=1)
    return logger


_MAKERS: Mapping[str, Callable[[LogPlace], Logger]] = {
    "csv": _csv, "tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow
}  # fmt: skip


def close(loggers: Sequence[Logger], status: str) -> None:
    """Write what is buffered, and end the run of Weights & Biases: a process has one at a time."""
    for logger in loggers:
        logger.finalize(status)
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()


@contextlib.contextmanager
def logging_rows(
    names: Sequence[str] | None, place: LogPlace, config: Any
) -> Iterator[Callable[[Sequence[Mapping[str, Any]]], None]]:
    """A function that logs rows of training.csv: iteration, algorithm, task, seed, and numbers by name.

    A number becomes the metric ALGORITHM/TASK/seed_SEED/NAME at the step `iteration`.

    Args:
        config: of the stage, a dataclass: the hyperparameters.
    """
    loggers = make_loggers(names or (), place)
    for logger in loggers:
        logger.log_hyperparams(dataclasses.asdict(config))

    def log(rows: Sequence[Mapping[str, Any]]) -> None:
        steps: dict[int, dict[str, float]] = {}
        for row in rows:
            prefix = f"{row['algorithm']}/{row['task']}/seed_{row['seed']}"
            found = {name: value for name, value in row.items() if name not in _ROW and _is_number(value)}
            steps.setdefault(row["iteration"], {}).update({f"{prefix}/{name}": value for name, value in found.items()})
        for step, metrics in steps.items():
            for logger in loggers:
                logger.log_metrics(metrics, step)
                logger.save()

    status = "failed"
    try:
        yield log if loggers else lambda rows: None
        status = "success"
    finally:
        close(loggers, status)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
