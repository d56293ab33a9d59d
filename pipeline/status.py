"""What `orrery status RUN` prints: the stages of a run, and every job of those that fan out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from . import artifact
from .errors import StageError
from .jobs.executor import alive_jobs
from .jobs.job import LOG, SPEC, SUBMISSION, JobStatus, read_progress, read_status, seconds_spent
from .kept import kept_note
from .logging import duration
from .reading import decode, read_json, reading
from .run_folder import RUN_FILE, jobs_folder, lock_holder, read_attempt


@dataclass(frozen=True)
class _StageRecord:
    stage: str
    status: str
    seconds: float
    summary: str


@dataclass(frozen=True)
class _RunRecord:
    """What is read of run.json."""

    experiment: str
    overrides: list[str]
    stages: list[_StageRecord]


def describe_status(run_dir: Path) -> RenderableType:
    """Return how far each stage of a run is, and each job.

    Raises:
        StageError: there is no run in `run_dir`.
    """
    record, holder = read_run_file(run_dir), lock_holder(run_dir)
    state = f"running, {holder}" if holder else "not running"
    parts: list[RenderableType] = [
        Text(f"{record['experiment']} in {run_dir}: {state}", no_wrap=True, overflow="ignore")
    ]
    stages = Table("stage", "status", "time", "result", box=None, pad_edge=False)
    parts.append(stages)
    for row in stage_rows(run_dir):
        stages.add_row(*row)
    for stage in record["stages"]:
        folder = jobs_folder(run_dir / stage["stage"])
        if jobs := sorted(path for path in folder.glob("*") if (path / SPEC).is_file()):
            parts += [Text(""), _describe_jobs(stage["stage"], jobs, running=holder is not None)]
    if note := kept_note(run_dir):
        parts += [Text(""), Text(note)]
    return Group(*parts)


def read_run_file(run_dir: Path) -> dict[str, Any]:
    """Return what run.json says.

    Raises:
        StageError: there is none, or it is damaged.
    """
    path = run_dir / RUN_FILE
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        raise StageError(f"{run_dir} is not a run folder: it has no {RUN_FILE}") from None
    with reading(path, StageError, "rerun `orrery run` with the same run_dir to rewrite it"):
        record: dict[str, Any] = read_json(path, StageError, "rerun `orrery run` with the same run_dir to rewrite it")
        decode(_RunRecord, record)
    return record


def stage_rows(run_dir: Path) -> list[tuple[str, str, str, Text]]:
    """Name, status, time and result of each stage of a run, as they are now.

    Raises:
        StageError: there is no run in `run_dir`.
    """
    running = lock_holder(run_dir) is not None
    return [_stage_row(run_dir, stage, running=running) for stage in read_run_file(run_dir)["stages"]]


def _stage_row(run_dir: Path, stage: Mapping[str, Any], *, running: bool) -> tuple[str, str, str, Text]:
    name, status, seconds, summary = stage["stage"], stage["status"], stage["seconds"], stage["summary"]
    attempt = read_attempt(run_dir / name)
    if status in ("interrupted", "failed", "detached"):
        seconds = attempt.seconds if attempt else 0.0
        status = "running" if running and status == "interrupted" else status
    elif status == "waiting" and (run_dir / name).is_dir() and (made := artifact.read_manifest(run_dir / name)):
        status, seconds, summary = "to be checked", made.seconds, made.summary
    else:
        made, damage = artifact.examine(run_dir / name)
        if made is None and not damage:
            damage = "its folder was deleted" if status in ("fresh", "reused", "done") else ""
        status, summary = ("damaged", damage) if damage else (status, summary)
    words = {"fresh": "up to date", "failed": "failed, see log.txt", "detached": "detached"}
    return name, words.get(status, status), duration(seconds) if seconds else "", Text(summary)


def _describe_jobs(stage: str, folders: list[Path], *, running: bool) -> Table:
    alive = alive_jobs(folders)
    table = Table(f"job of {stage}", "state", "attempts", "time", "log", "", box=None, pad_edge=False)
    for column in (0, 4, 5):
        table.columns[column].overflow = "fold"
    for folder in folders:
        status = read_status(folder)
        state = _job_state(folder, status, alive=running or folder in alive)
        text = read_progress(folder) if state in ("running", "interrupted") else status.error
        seconds = duration(seconds_spent(folder, status)) if status.attempts else ""
        log = str(folder / LOG) if (folder / LOG).is_file() else ""
        table.add_row(folder.name, state, str(status.attempts), seconds, Text(log), Text(text))
    return table


def _job_state(folder: Path, status: JobStatus, *, alive: bool) -> str:
    if status.state in ("submitted", "running") and not alive:
        return "ended, not collected yet" if (folder / SUBMISSION).is_file() else "interrupted"
    return status.state
