"""What `orrery status RUN` prints: the stages of a run, and every job of those that fan out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from . import artifact
from .errors import StageError
from .jobs.executor import alive_jobs
from .jobs.job import LOG, SPEC, SUBMISSION, JobStatus, read_progress, read_status, seconds_spent
from .kept import kept_note
from .lock import lock_holder
from .reading import decode, read_json, reading
from .run_folder import RUN_FILE, jobs_folder, read_attempt
from .tables import rows_table


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


def read_run_status(run_dir: Path) -> dict[str, Any]:
    """Experiment, and how far each stage of a run is and each job.

    Raises:
        StageError: there is no run in `run_dir`.
    """
    record, holder = read_run_file(run_dir), lock_holder(run_dir)
    names = [stage["stage"] for stage in record["stages"]]
    jobs = {name: sorted(path.parent for path in jobs_folder(run_dir / name).glob(f"*/{SPEC}")) for name in names}
    return {
        "folder": str(run_dir),
        "experiment": record["experiment"],
        "overrides": record["overrides"],
        "running": holder,
        "stages": stage_rows(run_dir),
        "jobs": [row for stage, own in jobs.items() for row in _job_rows(stage, own, running=holder is not None)],
        "note": kept_note(run_dir),
    }


def describe_status(status: Mapping[str, Any]) -> RenderableType:
    """What `read_run_status` returns, for people."""
    state = f"running, {status['running']}" if status["running"] else "not running"
    parts: list[RenderableType] = [
        Text(f"{status['experiment']} in {status['folder']}: {state}", no_wrap=True, overflow="ignore"),
        rows_table(status["stages"]),
    ]
    for stage, jobs in itertools.groupby(status["jobs"], key=lambda row: row["stage"]):
        own = [{f"job of {stage}" if key == "job" else key: value for key, value in row.items()} for row in jobs]
        parts += [Text(""), rows_table(own, [key for key in own[0] if key != "stage"])]
    if status["note"]:
        parts += [Text(""), Text(status["note"])]
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
        if not run_dir.exists():
            raise StageError(f"there is no folder {run_dir.absolute()}; `orrery ls FOLDER` lists runs") from None
        raise StageError(f"{run_dir} is not a run folder: it has no {RUN_FILE}") from None
    with reading(path, StageError, "rerun `orrery run` with the same run_dir to rewrite it"):
        record: dict[str, Any] = read_json(path, StageError, "rerun `orrery run` with the same run_dir to rewrite it")
        decode(_RunRecord, record)
    return record


def stage_rows(run_dir: Path) -> list[dict[str, Any]]:
    """Stage, status, seconds and result of each stage of a run, as they are now.

    Raises:
        StageError: there is no run in `run_dir`.
    """
    running = lock_holder(run_dir) is not None
    return [_stage_row(run_dir, stage, running=running) for stage in read_run_file(run_dir)["stages"]]


def _stage_row(run_dir: Path, stage: Mapping[str, Any], *, running: bool) -> dict[str, Any]:
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
    words = {"fresh": "up to date", "failed": "failed, see log.txt"}
    return {"stage": name, "status": words.get(status, status), "seconds": seconds, "result": summary}


def _job_rows(stage: str, folders: list[Path], *, running: bool) -> Iterator[dict[str, Any]]:
    alive = alive_jobs(folders)
    for folder in folders:
        status = read_status(folder)
        state = _job_state(folder, status, alive=running or folder in alive)
        yield {
            "stage": stage,
            "job": folder.name,
            "state": state,
            "attempts": status.attempts,
            "seconds": seconds_spent(folder, status) if status.attempts else 0.0,
            "log": str(folder / LOG) if (folder / LOG).is_file() else "",
            "note": read_progress(folder) if state in ("running", "interrupted") else status.error,
        }


def _job_state(folder: Path, status: JobStatus, *, alive: bool) -> str:
    if status.state in ("submitted", "running") and not alive:
        return "ended, not collected yet" if (folder / SUBMISSION).is_file() else "interrupted"
    return status.state
