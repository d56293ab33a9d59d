"""Where the jobs of a fan-out run: in this process, in processes of this machine, on SLURM, or on a Ray cluster.

An executor starts jobs and tells when they have ended; how they ended stands in their folders (see jobs.py), which
have to be visible wherever jobs run. Only inline runs a job in this process; all others run it under a JobProcess,
so that time limits, deaths and logs are the same everywhere.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from .. import termination
from ..accelerator import check_gpu, wants_gpu
from ..config.checks import check_choices, check_counts, check_not_negative
from ..errors import ConfigError, StageError
from ..logging import LogFile
from .job import LOG, State, describe_error, execute, log_end, log_start, read_status, write_status
from .pool import THREAD_VARIABLES
from .process import JobProcess

EXECUTORS = ("inline", "local", "slurm", "ray")
CLUSTERS = ("slurm", "local", "debug")


@dataclass(frozen=True)
class SlurmConfig:
    """What is asked of SLURM for each job."""

    partition: str = ""
    """Partition; empty is the cluster's default."""
    gpus: int = 0
    """GPUs of a job."""
    mem_gb: float = 0.0
    """Memory of a job; 0 is the cluster's default."""
    options: dict[str, str] = field(default_factory=dict)
    """Other options of sbatch by their long names: {account: lab, constraint: a100}."""
    cluster: str = "slurm"
    """slurm; or, to try things out without one, submitit's local (processes of this machine that outlive the command)
    or debug (in this process)."""

    def __post_init__(self) -> None:
        check_choices(self, cluster=CLUSTERS)


@dataclass(frozen=True)
class FanoutConfig:
    """How a stage's work is split into jobs, and where they run. Decides speed, not results."""

    executor: str = "inline"
    """inline (one after another in this process), local (processes of this machine), slurm, or ray."""
    members_per_job: int = 0
    """Policies that a job trains as one program; 0 as many as fit into memory by an estimate, spread over the jobs that
    run at once."""
    memory_gb: float = 0.0
    """Memory that a job may take (of the GPU, where it uses one), for that estimate; 0 takes this machine's."""
    jobs_per_gpu: int = 1
    """Jobs that share a GPU (local, ray)."""
    parallel_jobs: int = 0
    """Jobs at once at most; 0 as many as there are GPUs or cores for."""
    cpus_per_job: int = 0
    """CPU cores, and torch threads, of a job; 0 as many as the stage makes good use of."""
    time_limit_min: float = 0.0
    """Minutes after which a job is stopped and counts as failed; 0 is no limit. SLURM needs one; inline cannot
    have one."""
    retries: int = 0
    """Times that a job which failed, died or reached its limit is started again before the command gives it up."""
    detach: bool = False
    """End the command as soon as all jobs are submitted (slurm); the same command gathers them later."""
    ray_address: str = ""
    """host:port, ray://host:port or auto, of a running Ray cluster; empty starts one on this machine."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    """What is asked of SLURM."""

    def __post_init__(self) -> None:
        check_choices(self, executor=EXECUTORS)
        check_not_negative(
            self, "members_per_job", "memory_gb", "parallel_jobs", "cpus_per_job", "time_limit_min", "retries"
        )
        check_counts(self, "jobs_per_gpu")
        if self.executor == "slurm" and not self.time_limit_min:
            raise ConfigError("time_limit_min: SLURM needs the longest time that a job may take, in minutes")
        if self.executor == "inline" and self.time_limit_min:
            raise ConfigError("time_limit_min: a job in this process cannot be stopped; choose executor=local")
        if self.detach and self.executor != "slurm":
            raise ConfigError(f"detach: jobs of executor={self.executor} end with the command; only slurm's go on")
        if self.ray_address and self.executor != "ray":
            raise ConfigError(f"ray_address is given, but executor is {self.executor}")

    def check_gpus(self, accelerator: str, key: str) -> None:
        """Raise a ConfigError if jobs of SLURM need a GPU and none is asked for.

        Args:
            key: of the accelerator, in full: `extract.accelerator`.
        """
        if self.executor == "slurm" and wants_gpu(accelerator) and not self.slurm.gpus:
            raise ConfigError(f"{key} is {accelerator}, but {_group(key)}slurm.gpus is 0")

    def check_machine(self, accelerator: str = "cpu", key: str = "accelerator") -> None:
        """Raise a StageError if the executor is not installed here or does not answer, or if jobs that run on this
        machine need a GPU that it lacks."""
        setting = f"{_group(key)}executor"
        if self.executor == "ray":
            if find_spec("ray") is None:
                raise StageError(
                    f"{setting}=ray needs Ray, which is not installed: pip install 'orrery[ray]', or choose another "
                    "executor"
                )
            if ":" in self.ray_address:
                from .ray_executor import check_reachable

                check_reachable(self.ray_address)
        if self.executor == "slurm":
            if find_spec("submitit") is None:
                raise StageError(f"{setting}=slurm needs submitit, which is not installed: pip install submitit")
            if self.slurm.cluster == "slurm" and shutil.which("srun") is None:
                raise StageError(
                    f"{setting}=slurm: there is no srun on this machine. Run the command on a login node of the "
                    f"cluster, or choose {setting}=local"
                )
        elsewhere = self.ray_address or (self.executor == "slurm" and self.slurm.cluster == "slurm")
        if not elsewhere:
            check_gpu(accelerator, key)


def _group(key: str) -> str:
    """Where the fan-out of the stage is set that has this key: `extract.fanout.`"""
    stage, dot, _ = key.partition(".")
    return f"{stage}.fanout." if dot else ""


@dataclass(frozen=True)
class JobNeeds:
    """What every job of a fan-out takes."""

    cpus: int
    limit_seconds: float
    """0 is no limit."""

    @property
    def environment(self) -> dict[str, str]:
        return dict.fromkeys(THREAD_VARIABLES, str(self.cpus))


class Executor(Protocol):
    """Starts jobs, and tells when they have ended. `submit` has counted the attempt in status.json before."""

    slots: int | None
    """Jobs that may be submitted at once; None is any number, which the executor queues itself."""
    poll_seconds: float

    def submit(self, folders: Sequence[Path]) -> None:
        """Start the jobs in these folders, at most as many as there are slots free."""
        ...

    def ended(self, folder: Path) -> str | None:
        """None while the job may still be running; then what the executor knows of its end, which may be nothing."""
        ...

    def close(self) -> None:
        """Stop what is still running and cannot go on without this process; jobs save their state."""
        ...


class InlineExecutor:
    """One job after another in this process."""

    slots: int | None = 1
    poll_seconds = 0.0

    def __init__(self, log: logging.Logger, progress: Any) -> None:
        self._log, self._progress = log, progress

    def submit(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            self._run(folder)

    def _run(self, folder: Path) -> None:
        started = time.time()
        status = replace(read_status(folder), state="running", started=started, place=f"process {os.getpid()}")
        write_status(folder, status)
        log_start(folder, status.attempts)
        handler = LogFile(folder / LOG)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._log.addHandler(handler)
        state: State = "stopped"
        reason = "interrupted"
        try:
            execute(folder, self._log, self._progress)
            state, reason = "done", ""
        except Exception as error:
            if termination.requested():
                raise
            self._log.debug("job %s", folder.name, exc_info=True)
            state, reason = "failed", describe_error(error)
        finally:
            self._log.removeHandler(handler)
            handler.close()
            seconds = time.time() - started
            status = replace(status, state=state, error=reason, started=None, seconds=status.seconds + seconds)
            write_status(folder, status)
            log_end(folder, status, seconds)

    def ended(self, folder: Path) -> str | None:
        return ""

    def close(self) -> None:
        pass


class LocalExecutor:
    """A process per job; as many at once as there are slots, each of which belongs to a GPU or to none."""

    poll_seconds = 0.1

    def __init__(self, needs: JobNeeds, devices: Sequence[str]) -> None:
        """Args:
        devices: CUDA_VISIBLE_DEVICES of each slot; empty strings on a CPU.
        """
        self.slots: int | None = len(devices)
        self._needs = needs
        self._free = list(reversed(devices))
        self._running: dict[Path, tuple[JobProcess, str]] = {}

    def submit(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            device = self._free.pop()
            environment = {**self._needs.environment, "CUDA_VISIBLE_DEVICES": device}
            process = JobProcess(folder, limit_seconds=self._needs.limit_seconds, environment=environment)
            self._running[folder] = process, device

    def ended(self, folder: Path) -> str | None:
        process, device = self._running[folder]
        if not process.poll():
            return None
        del self._running[folder]
        self._free.append(device)
        return ""

    def close(self) -> None:
        processes = [process for process, _ in self._running.values()]
        for process in processes:
            process.stop()
        for process in processes:
            process.wait()
        self._running.clear()


def visible_gpus() -> list[str]:
    """CUDA_VISIBLE_DEVICES of each GPU that this process may use."""
    if (listed := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [device.strip() for device in listed.split(",") if device.strip()]
    import torch

    return [str(device) for device in range(torch.cuda.device_count())]


def local_slots(config: FanoutConfig, accelerator: str, jobs_for_cores: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of every job that may run at once on this machine; empty strings where they use no GPU."""
    devices = [] if accelerator == "cpu" else visible_gpus() * config.jobs_per_gpu
    if wants_gpu(accelerator) and not devices:
        raise StageError("jobs want a GPU, but this machine shows none; choose accelerator=cpu")
    slots = devices or [""] * max(jobs_for_cores, 1)
    return slots[: config.parallel_jobs or None]
