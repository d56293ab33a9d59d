"""Loggers of stages that learn: what they write, where, and what is said before a run starts."""

from __future__ import annotations

import csv
import importlib.util
import logging
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from orrery.pipeline.errors import ConfigError
from orrery.pipeline.jobs.job import JobContext
from orrery.pipeline.stage import Context
from orrery.stages.extraction.config import ExtractConfig
from orrery.stages.extraction.stage_extract import Extract
from orrery.stages.training import config as training_config
from orrery.stages.training.loggers import logging_rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROWS = [
    {
        "iteration": step,
        "algorithm": "pwm@0.3",
        "task": "dmc/walker-run@50",
        "seed": seed,
        "loss": step + seed,
        "note": None,
    }
    for step in (10, 20)
    for seed in (0, 1)
]


@dataclass(frozen=True)
class Settings:
    lr: float = 0.5
    networks: dict[str, int] = field(default_factory=lambda: {"units": 8})


def job(folder: Path) -> JobContext:
    partial = folder / "run/extract.jobs/all/result.partial"
    partial.mkdir(parents=True)
    return JobContext(partial, {}, 1, 1, logging.getLogger("orrery"), None)


def log(names: list[str], place: JobContext) -> Path:
    with logging_rows(names, place, Settings()) as write:
        write(ROWS[:2])
        write(ROWS[2:])
    return place.logs


def test_places_of_a_stage_and_of_a_job(tmp_path):
    place = job(tmp_path)
    assert (place.logs, place.logged_as) == (tmp_path / "run/logs", "extract/all")
    stage = Context(tmp_path / "run/pretrain.partial", {}, 1, 1, logging.getLogger("orrery"), None)
    assert (stage.logs, stage.logged_as) == (tmp_path / "run/logs", "pretrain")
    assert not log([], place).exists()


def test_csv_and_tensorboard_hold_the_rows_and_the_settings(tmp_path):
    logs = log(["csv", "tensorboard"], job(tmp_path))
    with (logs / "csv/extract/all/attempt_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    name = "pwm@0.3/dmc/walker-run@50/seed_1/loss"
    assert [(int(row["step"]), float(row[name])) for row in rows] == [(10, 11), (20, 21)]
    settings = yaml.safe_load((logs / "csv/extract/all/attempt_0/hparams.yaml").read_text())
    assert settings == {"lr": 0.5, "networks": {"units": 8}}
    events = EventAccumulator(str(logs / "tensorboard/extract/all"))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars(name)] == [(10, 11), (20, 21)]
    assert not any("note" in tag for tag in events.Tags()["scalars"])


@pytest.mark.filterwarnings("ignore")
def test_mlflow_writes_to_a_database_in_the_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    logs = log(["mlflow"], job(tmp_path))
    client = mlflow.MlflowClient(f"sqlite:///{logs / 'mlflow.db'}")
    (experiment,) = [one for one in client.search_experiments() if one.name == "run"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("extract/all", "FINISHED")
    assert found.data.params == {"lr": "0.5", "networks/units": "8"}
    history = client.get_metric_history(found.info.run_id, "pwm-0.3/dmc/walker-run-50/seed_1/loss")
    assert [(one.step, one.value) for one in history] == [(10, 11), (20, 21)]


@pytest.mark.filterwarnings("ignore")
def test_wandb_without_login_is_offline_and_says_so(tmp_path, monkeypatch, caplog):
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(logging.getLogger("orrery"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="orrery"):
        logs = log(["wandb"], job(tmp_path))
    wandb.teardown()  # its own process writes the file, at times only after finish
    (run,) = logs.glob("wandb/offline-run-*/run-*.wandb")
    content = run.read_bytes()
    for part in (b"pwm@0.3/dmc/walker-run@50/seed_1/loss", b"units", b"extract/all"):
        assert part in content
    assert [record.message for record in caplog.records if "wandb" in record.message] == [
        f"wandb: offline; to upload, run `wandb login` and `wandb sync {logs}/wandb/offline-*`"
    ]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    again = log(["wandb"], job(tmp_path / "other"))
    assert not list(again.glob("wandb/offline-run-*"))


def test_what_cannot_log_is_refused_before_the_run(monkeypatch):
    with pytest.raises(ConfigError, match="loggers: expected some of csv, tensorboard, wandb, mlflow, found 'wandb2'"):
        ExtractConfig(loggers=["csv", "wandb2"])
    with pytest.raises(ConfigError, match="loggers must not repeat: csv, csv"):
        ExtractConfig(loggers=["csv", "csv"])
    find = importlib.util.find_spec
    monkeypatch.setattr(
        training_config.importlib.util, "find_spec", lambda name: None if name == "mlflow" else find(name)
    )
    with pytest.raises(ConfigError, match=r"extract.loggers has mlflow, which is not installed.*'orrery\[mlflow\]'"):
        Extract(ExtractConfig(loggers=["mlflow"])).check_machine()
