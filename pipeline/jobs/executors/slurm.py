"""Jobs on SLURM, submitted through submitit. They continue when the command that submitted them ends; the same command
finds them again by the submission.json in their folders.

Lost jobs are found through squeue, which every cluster has. submitit asks sacct, which fails without an accounting
database; a job that was lost with its node would then be waited for without end.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ... import artifact, termination
from ...errors import StageError
from ...reading import read_json
from ...stage import Context
from ..executor import Executor, JobResources
from ..job import SUBMISSION, read_status, write_status
from ..process import GRACE_SECONDS, JobProcess

SUBMITIT_FOLDER = ".submitit"
"""Beside the job folders: submission scripts, and what SLURM and submitit printed."""

CANCEL_SECONDS = 30.0

ANSWER_SECONDS = 15.0
"""For the controller to answer. SLURM's commands look a minute for a slurm.conf that is not there."""

QUEUE_SECONDS = 10.0
"""Between questions to the controller. How a job has ended stands in its folder; this finds those that were lost."""

ARRAY_JOBS = 1000
"""Of a job array at most, where SLURM does not say (MaxArraySize)."""

SLACK_MIN = 5
"""SLURM's own limit lies this much above ours, so that it is ours that ends a hanging job, and says so."""

FINAL = ("done", "failed", "died", "timeout")
"""States in which a job's folder says that it has ended; one that was stopped may be requeued."""

ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
)
"""States of SLURM."""


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

    def arguments(self, resources: JobResources) -> dict[str, Any]:
        """Options of sbatch by long name; True has no value."""
        named = {
            "partition": self.partition,
            "gpus-per-node": self.gpus,
            "mem": f"{math.ceil(self.mem_gb * 1024)}M" if self.mem_gb else "",
            "cpus-per-task": resources.cpus,
            "time": limit_minutes(resources),
        }
        return {name: value for name, value in named.items() if value} | self.sbatch


def limit_minutes(resources: JobResources) -> int:
    """SLURM's time limit of a job."""
    return math.ceil(resources.limit_seconds / 60) + SLACK_MIN


class SlurmExecutor(Executor):
    """Every submission is a job array, or several where it is large."""

    Options = SlurmOptions
    needs_time_limit = True
    outlives_command = True
    slots = None

    def __init__(self, options: SlurmOptions, resources: JobResources, context: Context) -> None:
        import submitit

        arguments = options.arguments(resources)
        _check_visible(context.jobs.absolute(), arguments)
        self._resources = resources
        self._array_jobs = _array_jobs()
        self._executor = submitit.SlurmExecutor(context.jobs.absolute() / SUBMITIT_FOLDER)
        self._executor.update_parameters(
            job_name="orrery",
            time=limit_minutes(resources),
            additional_parameters=arguments,
        )
        self._ids: dict[Path, str] = {}
        self._queue: dict[str, _Queued] | None = None
        self._asked = -math.inf

    def submit(self, folders: Sequence[Path]) -> None:
        from submitit.core.utils import FailedJobError

        limit, environment = self._resources.limit_seconds, self._resources.environment
        arrays = [folders[i : i + self._array_jobs] for i in range(0, len(folders), self._array_jobs)]
        parallel = self._resources.parallel_jobs
        share = max(parallel // len(arrays), 1) if parallel else self._array_jobs
        self._executor.update_parameters(array_parallelism=share)
        for array in arrays:
            watches = [_Watch(str(f.absolute()), read_status(f).attempts, limit, environment) for f in array]
            with termination.deferred():  # nobody would find jobs again whose ids are not written down
                try:
                    with self._executor.batch():
                        jobs = [self._executor.submit(watch) for watch in watches]
                except (FailedJobError, OSError) as error:
                    raise StageError(f"SLURM rejected the jobs: {error}") from error
                for folder, job in zip(array, jobs, strict=True):
                    self._ids[folder] = job.job_id
                    artifact.write_json(folder / SUBMISSION, {"id": job.job_id})
        self._queue, self._asked = None, time.monotonic()

    def adopt(self, folder: Path) -> None:
        self._ids[folder] = _id(folder)

    def ended(self, folder: Path) -> str | None:
        if read_status(folder).state not in FINAL:
            if time.monotonic() - self._asked > QUEUE_SECONDS:
                self._queue, self._asked = _ask_queue(), time.monotonic()
            if _is_alive(self._ids[folder], self._queue):
                return None
        (folder / SUBMISSION).unlink(missing_ok=True)
        return self._end_of(folder)

    def _end_of(self, folder: Path) -> str:
        queued = (self._queue or {}).get(self._ids[folder])
        how = f"{queued.state} on {queued.nodes}" if queued else "no longer in the queue"
        log = folder.parent.absolute() / SUBMITIT_FOLDER / f"{self._ids[folder]}_0_log.err"
        if log.exists():
            return f"SLURM: {how}; see {log}"
        return f"SLURM: {how}, and nothing was written to {log.parent}; all nodes must see the run folder"

    def close(self) -> None:
        """Jobs go on."""

    @classmethod
    def still_alive(cls, folders: Iterable[Path]) -> set[Path]:
        """Asks SLURM once for all."""
        submitted = [folder for folder in folders if read_status(folder).state not in FINAL]
        if not submitted:
            return set()
        queue = _ask_queue()
        return {folder for folder in submitted if _is_alive(_id(folder), queue)}

    @classmethod
    def cancel(cls, folder: Path) -> None:
        deadline = time.monotonic() + GRACE_SECONDS + CANCEL_SECONDS
        while cls.still_alive([folder]):
            if time.monotonic() > deadline:
                raise StageError(
                    f"job {_id(folder)} is still running on SLURM in {folder} with earlier settings; cancel it "
                    f"(scancel {_id(folder)}) and rerun the command"
                )
            subprocess.run(["scancel", _id(folder)], check=False)
            time.sleep(1.0)

    @classmethod
    def check_machine(cls, options: SlurmOptions, resources: JobResources, group: str) -> None:
        setting = f"{group}executor"
        if find_spec("submitit") is None:
            raise StageError(f"{setting}=slurm needs submitit, which is not installed: pip install submitit")
        if shutil.which("srun") is None:
            raise StageError(
                f"{setting}=slurm: srun is not available on this machine. Run the command on a login node of the "
                f"cluster, or use {setting}=local"
            )
        flags = _flags(options.arguments(resources))
        if reason := _refusal(["sbatch", "--test-only", *flags, "--wrap=true"]):
            raise StageError(
                f"{setting}=slurm: SLURM would not accept these jobs (sbatch --test-only {' '.join(flags)}): {reason}. "
                f"Correct {group}options, or tell SLURM's commands where its slurm.conf is (SLURM_CONF)"
            )

    @classmethod
    def lacks_gpus(cls, options: SlurmOptions) -> str:
        return "" if options.gpus else "gpus is 0"

    @classmethod
    def is_local(cls, options: SlurmOptions) -> bool:
        return False


@dataclass(frozen=True)
class _Queued:
    """A job as the queue knows it."""

    state: str
    nodes: str


def _ask_queue() -> dict[str, _Queued] | None:
    """The jobs of this user by id, among them those that have ended in the last minutes. None if there is no answer."""
    answer = _answer(["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%i|%T|%N"])
    if answer is None:
        return None
    rows = (line.strip().split("|") for line in answer.splitlines())
    return {job: _Queued(state, nodes) for job, state, nodes in rows}


def _array_jobs() -> int:
    """Of a job array at most; 1, which is none, where the cluster has switched them off."""
    found = re.search(r"MaxArraySize *= *(\d+)", _answer(["scontrol", "show", "config"]) or "")
    return max(int(found[1]), 1) if found else ARRAY_JOBS


def _check_visible(folder: Path, arguments: Mapping[str, Any]) -> None:
    """Raise a StageError if a node that is free at this moment does not see the jobs' folder. Where none is free, jobs
    find out: see `_end_of`."""
    flags = _flags({**arguments, "time": 1, "immediate": 1, "chdir": "/"})
    blind = _answer(["srun", *flags, "sh", "-c", 'test -d "$0" || hostname', str(folder)])
    if blind:
        raise StageError(
            f"{folder} is not visible on {blind.split()[0]}, a node of the SLURM cluster; set run_dir to a folder on a "
            "disk that all nodes share"
        )


def _flags(arguments: Mapping[str, Any]) -> list[str]:
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in arguments.items()]


def _answer(command: Sequence[str]) -> str | None:
    """What a command of SLURM prints; None if it fails or gives no answer. It is not told of the job that this command
    may itself run in."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_JOB")}
    try:
        return subprocess.run(
            command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ANSWER_SECONDS,
            check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None


def _is_alive(job_id: str, queue: Mapping[str, _Queued] | None) -> bool:
    """Whether a job is queued or running. While nobody answers, it is: a second one would write to the same folder."""
    return queue is None or (job_id in queue and queue[job_id].state not in ENDED)


def _refusal(command: Sequence[str]) -> str:
    """What the command says on stderr if it fails; empty if it does not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        said = (error.stderr or b"").decode()
        return f"no answer in {ANSWER_SECONDS:g} s{': ' if said else ''}{' '.join(said.split())}"
    return " ".join(done.stderr.split()) if done.returncode else ""


def _id(folder: Path) -> str:
    """Id of a job that was submitted."""
    submission = read_json(folder / SUBMISSION, StageError)
    return str(submission["id"])


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
        """Called by submitit on its preemption signal: save, and say how to go on; None does not."""
        folder = Path(self._folder)
        if self._process is not None:
            self._process.stop()
            self._process.wait()
        if read_status(folder).state == "done":
            return None
        write_status(folder, replace(read_status(folder), state="submitted", attempts=self._attempt + 1))
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(_Watch(self._folder, self._attempt + 1, self._limit, self._environment))
