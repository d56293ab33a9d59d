"""What an executor is: where the jobs of a fan-out run. An entry point in group `orrery.executors` names each.

An executor starts jobs and tells when they have ended; how they ended stands in their folders (see job.py), which
have to be visible wherever jobs run. Only inline runs a job in this process; all others run it under a JobProcess,
so that time limits, deaths and logs are the same everywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..entry_points import load
from ..stage import Context
from .job import SUBMISSION, read_status
from .pool import THREAD_VARIABLES


@dataclass(frozen=True)
class JobResources:
    """Resources of the jobs of a fan-out."""

    cpus: int
    """CPU cores of a job."""
    workers: int = 1
    """Processes that this machine may run."""
    accelerator: str = "cpu"
    """As in accelerator.py."""
    jobs_per_gpu: int = 1
    parallel_jobs: int = 0
    """Jobs at once at most; 0 is no limit."""
    limit_seconds: float = 0.0
    """After which a job is stopped; 0 is no limit."""

    @property
    def environment(self) -> dict[str, str]:
        return dict.fromkeys(THREAD_VARIABLES, str(self.cpus))


@dataclass(frozen=True)
class NoOptions:
    """An executor without options."""


class Executor(ABC):
    """Starts jobs, and tells when they have ended. `submit` has counted the attempt in status.json before.

    The module of an executor is imported to check a config, so it imports its library only where it uses it.
    """

    Options: ClassVar[type] = NoOptions
    """A frozen dataclass of the executor's own settings, `fanout.options`; every field has a default."""
    in_this_process: ClassVar[bool] = False
    """Jobs run in this process: they share its threads, show their own progress, and cannot be stopped at a limit."""
    needs_time_limit: ClassVar[bool] = False
    outlives_command: ClassVar[bool] = False
    """Jobs continue without the command, so that it may detach. Writes submission.json into the folder of each."""

    slots: int | None
    """Maximum number of submitted jobs; None: no limit, the executor queues them itself."""
    poll_seconds: float = 1.0

    @abstractmethod
    def __init__(self, options: Any, resources: JobResources, context: Context) -> None:
        """Args:
            options: of class `Options`.
            context: of the stage; its `jobs` is the folder of the jobs' folders.
        Raises:
            StageError: the executor does not answer, or lacks what jobs need.
        """

    @abstractmethod
    def submit(self, folders: Sequence[Path]) -> None:
        """Start the jobs in these folders, at most as many as there are slots free."""

    @abstractmethod
    def ended(self, folder: Path) -> str | None:
        """None while the job may still be running; then what the executor knows of its end, which may be nothing."""

    @abstractmethod
    def close(self) -> None:
        """Stop what is still running and cannot continue without this process; jobs save their state."""

    def adopt(self, folder: Path) -> None:
        """Follow a job that an earlier command submitted and `still_alive` has found."""
        raise NotImplementedError

    @classmethod
    def still_alive(cls, folders: Iterable[Path]) -> set[Path]:
        """The jobs among those that an earlier command submitted that are queued or running."""
        return set()

    @classmethod
    def cancel(cls, folder: Path) -> None:
        """End a job that an earlier command submitted, and wait until it has ended.

        Raises:
            StageError: it has not.
        """
        return

    @classmethod
    def check_machine(cls, options: Any, resources: JobResources, group: str) -> None:
        """Raise a StageError if the executor is not installed here, does not answer, or has no place for such jobs.

        Args:
            resources: of a job, as far as they are known before the stage runs.
            group: where the fan-out is set, for messages: `extract.fanout.`
        """
        return

    @classmethod
    def lacks_gpus(cls, options: Any) -> str:
        """Which option leaves jobs without a GPU, and its value, for a message: `gpus is 0`. Empty if none does."""
        return ""

    @classmethod
    def is_local(cls, options: Any) -> bool:
        """Whether jobs run on this machine, whose memory and GPUs are then theirs."""
        return True

    @classmethod
    def jobs_here(cls, options: Any, resources: JobResources) -> int:
        """Jobs that share this machine's memory at a time."""
        return 1


def load_executor(name: str) -> type[Executor]:
    """Raises a ConfigError if it is unknown or broken."""
    found: type[Executor] = load("executors", name, Executor)
    return found


def alive_jobs(folders: Iterable[Path]) -> dict[Path, str]:
    """The jobs that an earlier command submitted and that are queued or running, with the names of their executors."""
    submitted: dict[str, list[Path]] = {}
    for folder in folders:
        if (folder / SUBMISSION).is_file():
            submitted.setdefault(read_status(folder).executor, []).append(folder)
    return {
        folder: name for name, many in submitted.items() for folder in sorted(load_executor(name).still_alive(many))
    }


def cancel_job(folder: Path) -> None:
    """End the job in `folder` if an earlier command submitted it; see `Executor.cancel`."""
    if (folder / SUBMISSION).is_file():
        load_executor(read_status(folder).executor).cancel(folder)
