"""Jobs in processes of this machine, so many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orrery.pipeline.jobs.executor import Executor, JobResources
from orrery.pipeline.jobs.process import JobProcess
from orrery.pipeline.stage import Context


@dataclass(frozen=True)
class QueueOptions:
    """How many jobs run."""

    width: int = 1
    """Jobs at once."""


class Queue(Executor):
    """A process per job, `width` at a time."""

    Options = QueueOptions
    poll_seconds = 0.05

    def __init__(self, options: QueueOptions, resources: JobResources, context: Context) -> None:
        self.slots = options.width
        self._resources = resources
        self._running: dict[Path, JobProcess] = {}

    def submit(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            self._running[folder] = JobProcess(
                folder, limit_seconds=self._resources.limit_seconds, environment=self._resources.environment
            )

    def ended(self, folder: Path) -> str | None:
        if not self._running[folder].poll():
            return None
        del self._running[folder]
        return ""

    def close(self) -> None:
        for process in self._running.values():
            process.stop()
        for process in self._running.values():
            process.wait()
