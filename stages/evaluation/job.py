"""A job of the stage evaluate: runs that are played side by side in processes.

What the job has finished stands in FINISHED, a line per run: its key and its episodes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...datasets.schema import TaskSpec
from ...pipeline.artifact import replacing
from ...pipeline.config.schema import build
from ...pipeline.jobs.job import JobContext
from ...pipeline.jobs.pool import run_all
from ...pipeline.reading import decode, reading_made
from .config import EvaluateConfig
from .episodes import EvaluationJob, evaluate_run
from .scores import EpisodeRow

FINISHED = "finished.jsonl"
"""Finished episodes by run, one line each: a later evaluation of more policies or episodes reuses them."""


def play_runs(payload: Mapping[str, Any], context: JobContext) -> None:
    """Play the members. A finished run is written at once, so a kill costs only the others.

    Args:
        payload: members (run, task as a TaskSpec's dict, content and first as in EvaluationJob), policies (folders by
            the key of a run), config (an EvaluateConfig's dict).
    Raises:
        StageError: a policy cannot be loaded or raises, a worker was killed, or an environment cannot be built or
            runs out of memory or files. These are not failed episodes, because they say nothing about the policy.
    """
    config: EvaluateConfig = build(EvaluateConfig, dict(payload["config"]), "evaluate")
    log = context.folder / FINISHED
    finished = dict(read_finished(log))
    jobs = []
    for one in payload["members"]:
        algorithm, task, seed = one["run"]
        spec = TaskSpec.from_dict(one["task"])
        job = EvaluationJob((algorithm, task, seed), spec, config, None, one["content"], one["first"])
        folder = payload["policies"].get(job.key)
        jobs.append(job if folder is None else replace(job, policy=Path(folder)))
    remaining = [job for job in jobs if job.key not in finished]
    total, left = (sum(config.episodes - job.first for job in some) for some in (jobs, remaining))
    with log.open("a") as file, context.progress("evaluate", total=total, completed=total - left) as progress:
        for job, rows in run_all(evaluate_run, remaining, workers=context.workers):
            finished[job.key] = rows
            file.write(_line(job.key, rows))
            file.flush()
            progress.advance(len(rows))
            progress.note(f"{job.run[0]} {job.run[1]}")
    write_finished(log, {job.key: finished[job.key] for job in jobs})  # in their order, not in that of workers


def write_finished(log: Path, runs: Mapping[str, Sequence[EpisodeRow]]) -> None:
    """Write the episodes of runs by their keys."""
    with replacing(log) as temporary:
        temporary.write_text("".join(_line(key, rows) for key, rows in runs.items()))


def read_finished(log: Path) -> Iterator[tuple[str, list[EpisodeRow]]]:
    """Keys and episodes of the runs that an evaluation has finished. A line that a kill cut short is dropped."""
    if not log.exists():
        return
    head, newline, rest = log.read_bytes().rpartition(b"\n")
    if rest:
        os.truncate(log, len(head + newline))  # written anew, all of it would be lost on a full disk
    with reading_made(log):
        for line in map(json.loads, head.splitlines()):
            old = isinstance(line, list)  # as versions before this one wrote it
            yield "" if old else str(line["key"]), decode(list[EpisodeRow], line if old else line["rows"])


def _line(key: str, rows: Sequence[EpisodeRow]) -> str:
    return json.dumps({"key": key, "rows": [asdict(row) for row in rows]}) + "\n"
