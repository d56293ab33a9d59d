"""Where the jobs of a fan-out run: in this process, in processes of this machine, on SLURM, or on a Ray cluster.

An executor starts jobs and tells when they have ended; how they ended stands in their folders (see jobs.py), which
have to be visible wherever jobs run. Only inline runs a job in this process; all others run it under a JobProcess,
so that time limits, deaths and logs are the same everywhere.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from .. import termination
from ..accelerator import wants_gpu
from ..errors import StageError
from ..logging import LogFile
from .config import FanoutConfig
from .job import LOG, State, describe_error, execute, log_end, log_start, read_status, write_status
from .pool import THREAD_VARIABLES
from .process import JobProcess


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
