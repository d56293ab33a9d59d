"""What an executor is: where the jobs of a fan-out run. Each has a file of its own in executors/.

An executor starts jobs and tells when they have ended; how they ended stands in their folders (see job.py), which
have to be visible wherever jobs run. Only inline runs a job in this process; all others run it under a JobProcess,
so that time limits, deaths and logs are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .pool import THREAD_VARIABLES


@dataclass(frozen=True)
class JobResources:
    """Resources of every job of a fan-out."""

    cpus: int
    limit_seconds: float
    """Time limit; 0 = none."""

    @property
    def environment(self) -> dict[str, str]:
        return dict.fromkeys(THREAD_VARIABLES, str(self.cpus))


class Executor(Protocol):
    """Starts jobs, and tells when they have ended. `submit` has counted the attempt in status.json before."""

    slots: int | None
    """Maximum number of submitted jobs; None: no limit, the executor queues them itself."""
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
