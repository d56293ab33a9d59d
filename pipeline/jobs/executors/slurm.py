"""Jobs on SLURM, through submitit. They go on when the command that submitted them ends; the same command finds them
again by what stands in their folders' submission.json."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import submitit

from ... import artifact
from ...errors import StageError
from ...reading import read_json
from ..config import FanoutConfig
from ..executor import JobResources
from ..job import SUBMISSION, read_status, write_status
from ..process import GRACE_SECONDS, JobProcess

SUBMITIT_FOLDER = ".submitit"
"""Beside the job folders: submission scripts, and what SLURM and submitit printed."""

CANCEL_SECONDS = 30.0

SLACK_MIN = 5
"""SLURM's own limit lies this much above ours, so that it is ours that ends a hanging job, and says so."""


class SlurmExecutor:
    """Every submission is one job array."""

    slots: int | None = None
    poll_seconds = 1.0

    def __init__(self, root: Path, config: FanoutConfig, needs: JobResources) -> None:
        """Args:
        root: the folder of the job folders.
        """
        slurm = config.slurm
        self._root, self._cluster, self._needs = root, slurm.cluster, needs
        self._executor = submitit.AutoExecutor(root.absolute() / SUBMITIT_FOLDER, cluster=slurm.cluster)
        self._executor.update_parameters(
            name="orrery",
            timeout_min=math.ceil(config.time_limit_min) + SLACK_MIN,
            cpus_per_task=needs.cpus,
            gpus_per_node=slurm.gpus or None,
            mem_gb=slurm.mem_gb or None,
            slurm_partition=slurm.partition or None,
            slurm_array_parallelism=config.parallel_jobs or None,
            slurm_additional_parameters=dict(slurm.options) or None,
        )
        self._jobs: dict[Path, submitit.Job[None]] = {}

    def submit(self, folders: Sequence[Path]) -> None:
        limit, environment = self._needs.limit_seconds, self._needs.environment
        watches = [_Watch(str(f.absolute()), read_status(f).attempts, limit, environment) for f in folders]
        try:
            with self._executor.batch():
                jobs = [self._executor.submit(watch) for watch in watches]
        except (submitit.core.utils.FailedJobError, OSError) as error:
            raise StageError(f"SLURM rejected the jobs: {error}") from error
        for folder, job in zip(folders, jobs, strict=True):
            self._jobs[folder] = job
            if self._cluster != "debug":
                artifact.write_json(folder / SUBMISSION, {"cluster": self._cluster, "id": job.job_id})

    def adopt(self, folder: Path) -> None:
        """Follow a job that an earlier command submitted, and that `still_alive` has found."""
        submission = _read(folder)
        if submission["cluster"] == "slurm":
            self._jobs[folder] = _slurm_job(folder, submission["id"])

    def ended(self, folder: Path) -> str | None:
        job = self._jobs.get(folder)
        if still_alive([folder]) if job is None else not job.done():
            return None
        (folder / SUBMISSION).unlink(missing_ok=True)
        return "" if job is None else f"SLURM: {job.state}; see {job.paths.stderr}"

    def close(self) -> None:
        """Jobs go on."""


def still_alive(folders: Iterable[Path]) -> set[Path]:
    """Those whose job an earlier command submitted, and that is still queued or running. Asks SLURM once for all."""
    alive, queued = set(), {}
    for folder in folders:
        submission = _read(folder)
        if not submission or read_status(folder).state not in ("submitted", "running"):
            continue
        if submission["cluster"] == "slurm":
            queued[folder] = _slurm_job(folder, submission["id"])
        elif _is_running(int(submission["id"])):
            alive.add(folder)
    if queued:
        submitit.SlurmJob.watcher.update()
        alive |= {folder for folder, job in queued.items() if not job.done()}
    return alive


def cancel(folder: Path) -> None:
    """End the job in `folder` if it is queued or running, and wait until it has.

    Raises:
        StageError: it has not.
    """
    submission = _read(folder)
    deadline = time.monotonic() + GRACE_SECONDS + CANCEL_SECONDS
    while still_alive([folder]):
        if time.monotonic() > deadline:
            raise StageError(
                f"job {submission['id']} is still running on SLURM in {folder} with earlier settings; cancel it "
                f"(scancel {submission['id']}) and rerun the command"
            )
        if submission["cluster"] == "slurm":
            subprocess.run(["scancel", submission["id"]], check=False)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(submission["id"]), signal.SIGTERM)
        time.sleep(1.0)


def _read(folder: Path) -> dict[str, str]:
    path = folder / SUBMISSION
    values: dict[str, str] = read_json(path, StageError) if path.exists() else {}
    return values


def _slurm_job(folder: Path, job_id: str) -> submitit.Job[None]:
    return submitit.SlurmJob(folder.parent.absolute() / SUBMITIT_FOLDER, job_id)


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


class _Watch:
    """What submitit calls on the node. With `checkpoint` it says that the job may be requeued when it is preempted."""

    def __init__(self, folder: str, attempt: int, limit_seconds: float, environment: Mapping[str, str]) -> None:
        self._folder, self._attempt = folder, attempt
        self._limit, self._environment = limit_seconds, environment
        self._process: JobProcess | None = None

    def __call__(self) -> None:
        folder = Path(self._folder)
        if read_status(folder).attempts != self._attempt:
            return  # it waited in the queue while another command gave it up and submitted the job again
        self._process = process = JobProcess(folder, limit_seconds=self._limit, environment=self._environment)
        # submitit ignores SIGTERM, which SLURM sends on preemption and scancel, and SIGUSR1 would kill it.
        answered = (signal.SIGTERM, signal.SIGUSR1)
        former = {number: signal.signal(number, lambda *_: process.stop()) for number in answered}
        try:
            process.wait()
        finally:
            for number, answer in former.items():
                signal.signal(number, answer)

    def checkpoint(self) -> Any:
        """Called by submitit on its preemption signal: save, and say how to go on."""
        folder = Path(self._folder)
        if self._process is not None:
            self._process.stop()
            self._process.wait()
        write_status(folder, replace(read_status(folder), state="submitted", attempts=self._attempt + 1))
        return submitit.helpers.DelayedSubmission(
            _Watch(self._folder, self._attempt + 1, self._limit, self._environment)
        )
