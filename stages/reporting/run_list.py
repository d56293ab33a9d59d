"""The runs below a folder: what they are, how far they are, and what came of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...pipeline.errors import OrreryError, StageError
from ...pipeline.lock import lock_holder
from ...pipeline.run_folder import RUN_FILE
from ...pipeline.status import read_run_file
from ...pipeline.study.study import is_study
from ..evaluation.config import BASELINES
from .results import ReportData

DEPTH = 4
"""Folders below which no run is looked for."""


def find_runs(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The folders of runs at or below `folder`, in order of their names; of a study, those of its variants."""
    if (folder / RUN_FILE).is_file() and not is_study(folder):
        yield folder
    elif depth:
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and not inner.is_symlink() and not inner.name.startswith("."):
                yield from find_runs(inner, depth - 1)


def describe_runs(folder: Path) -> list[dict[str, Any]]:
    """Run (relative to `folder`), experiment, status, date, number of tasks, mean score by algorithm as text and in
    numbers, bytes.

    Raises:
        StageError: there is no such folder.
    """
    if not folder.is_dir():
        raise StageError(f"there is no folder {folder.absolute()}. Runs are written to runs/, or to run_dir=PATH")
    return [_describe_run(run, folder) for run in find_runs(folder)]


def _describe_run(run: Path, folder: Path) -> dict[str, Any]:
    name = str(run.relative_to(folder)) if run != folder else str(run)
    row = {"run": name, "experiment": "", "status": "", "date": "", "tasks": 0, "mean score": {}, "scores": {}}
    try:
        record, data = read_run_file(run), ReportData.of_run(run)
        changed = datetime.fromtimestamp((run / RUN_FILE).stat().st_mtime, UTC)
        learned = {name: one for name, one in data.summary.algorithms.items() if name not in BASELINES}
        row |= {
            "experiment": record["experiment"],
            "status": "running" if lock_holder(run) else _status(record["stages"]),
            "date": changed.isoformat(timespec="seconds"),
            "tasks": len(data.tasks),
            "mean score": {name: one.text() for name, one in learned.items()},
            "scores": {name: asdict(one.mean) for name, one in learned.items()},
        }
    except OrreryError as error:  # one damaged run must not hide the others
        row["status"] = f"damaged: {error}"
    return row | {"bytes": _bytes(run)}


def _status(stages: list[dict[str, Any]]) -> str:
    finished = sum(one["status"] in ("fresh", "reused", "done") for one in stages)
    if finished == len(stages):
        return "done"
    stopped = next((one for one in stages if one["status"] in ("failed", "interrupted", "detached")), None)
    return f"{stopped['status']} in {stopped['stage']}" if stopped else f"{finished} of {len(stages)} stages done"


def _bytes(folder: Path) -> int:
    """On disk; a file under several names counts once."""
    inodes: dict[tuple[int, int], int] = {}
    for top, _, files in os.walk(folder):
        for file in files:
            stat = os.lstat(Path(top, file))
            inodes[stat.st_dev, stat.st_ino] = stat.st_size
    return sum(inodes.values())
