"""Jobs on SLURM, through submitit. They go on when the command that submitted them ends; the same command finds them
again by what stands in their folders' submission.json."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import artifact
from ...config.checks import check_choices
from ...errors import StageError
from ...reading import read_json
from ...stage import Context
from ..executor import Executor, JobResources
from ..job import SUBMISSION, read_status, write_status
from ..process import GRACE_SECONDS, JobProcess

if TYPE_CHECKING:
    import submitit

SUBMITIT_FOLDER = ".submitit"
"""Beside the job folders: submission scripts, and what SLURM and submitit printed."""

CANCEL_SECONDS = 30.0

SLACK_MIN = 5
"""SLURM's own limit lies this much above ours, so that it is ours that ends a hanging job, and says so."""


@dataclass(frozen=True)
class SlurmOptions:
    """Resources of each SLURM job."""

    partition: str = ""
    """Partition. Empty: the cluster's default."""
    gpus: int = 0
    """GPUs per job."""
    mem_gb: float = 0.0
    """Memory per job in GB; 0 = the cluster's default."""
    sbatch: dict[str, Any] = field(default_factory=dict)
    """Other sbatch options by long name: {account: lab, constraint: a100}."""
    cluster: str = "slurm"
    """slurm; for tests without a cluster, submitit's local (background processes on this machine) or debug (in this
    process)."""

    def __post_init__(self) -> None:
        check_choices(self, cluster=("slurm", "local", "debug"))


class SlurmExecutor(Executor):
    """Every submission is one job array."""

    Options = SlurmOptions
    needs_time_limit = True
    outlives_command = True
    slots = None

    def __init__(self, options: SlurmOptions, resources: JobResources, context: Context) -> None:
        import submitit

        self._cluster, self._resources = options.cluster, resources
        self._executor = submitit.AutoExecutor(context.jobs.absolute() / SUBMITIT_FOLDER, cluster=options.cluster)
        self._executor.update_parameters(
            name="orrery",
            timeout_min=math.ceil(resources.limit_seconds / 60) + SLACK_MIN,
            cpus_per_task=resources.cpus,
            gpus_per_node=options.gpus or None,
            mem_gb=options.mem_gb or None,
            slurm_partition=options.partition or None,
            slurm_array_parallelism=resources.parallel_jobs or None,
            slurm_additional_parameters=dict(options.sbatch) or None,
        )
        self._jobs: dict[Path, submitit.Job[None]] = {}

    def submit(self, folders: Sequence[Path]) -> None:
        from submitit.core.utils import FailedJobError

        limit, environment = self._resources.limit_seconds, self._resources.environment
        watches = [_Watch(str(f.absolute()), read_status(f).attempts, limit, environment) for f in folders]
        try:
            with self._executor.batch():
                jobs = [self._executor.submit(watch) for watch in watches]
        except (FailedJobError, OSError) as error:
            raise StageError(f"SLURM rejected the jobs: {error}") from error
        for folder, job in zip(folders, jobs, strict=True):
            self._jobs[folder] = job
            if self._cluster != "debug":
                artifact.write_json(folder / SUBMISSION, {"cluster": self._cluster, "id": job.job_id})

    def adopt(self, folder: Path) -> None:
        submission = _read(folder)
        if submission["cluster"] == "slurm":
            self._jobs[folder] = _slurm_job(folder, submission["id"])

    def ended(self, folder: Path) -> str | None:
        job = self._jobs.get(folder)
        if self.still_alive([folder]) if job is None else not job.done():
            return None
        (folder / SUBMISSION).unlink(missing_ok=True)
        return "" if job is None else f"SLURM: {job.state}; see {job.paths.stderr}"

    def close(self) -> None:
        """Jobs go on."""

    @classmethod
    def still_alive(cls, folders: Iterable[Path]) -> set[Path]:
        """Asks SLURM once for all."""
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
            import submitit

            submitit.SlurmJob.watcher.update()
            alive |= {folder for folder, job in queued.items() if not job.done()}
        return alive

    @classmethod
    def cancel(cls, folder: Path) -> None:
        submission = _read(folder)
        deadline = time.monotonic() + GRACE_SECONDS + CANCEL_SECONDS
        while cls.still_alive([folder]):
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

    @classmethod
    def check_machine(cls, options: SlurmOptions, group: str) -> None:
        setting = f"{group}executor"
        if find_spec("submitit") is None:
            raise StageError(f"{setting}=slurm needs submitit, which is not installed: pip install submitit")
        if options.cluster == "slurm" and shutil.which("srun") is None:
            raise StageError(
                f"{setting}=slurm: srun is not available on this machine. Run the command on a login node of the "
                f"cluster, or use {setting}=local"
            )

    @classmethod
    def lacks_gpus(cls, options: SlurmOptions) -> str:
        return "" if options.gpus else "gpus is 0"

    @classmethod
    def is_local(cls, options: SlurmOptions) -> bool:
        return options.cluster != "slurm"


def _read(folder: Path) -> dict[str, str]:
    path = folder / SUBMISSION
    values: dict[str, str] = read_json(path, StageError) if path.exists() else {}
    return values


def _slurm_job(folder: Path, job_id: str) -> submitit.Job[None]:
    import submitit

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
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(_Watch(self._folder, self._attempt + 1, self._limit, self._environment))
