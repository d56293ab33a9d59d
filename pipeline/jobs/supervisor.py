"""Supervision of the jobs of a fan-out: submits them as the executor has room, watches them, restarts failed ones."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from .. import termination
from ..errors import Detached, StageError
from ..logging import duration
from ..run_folder import JOBS_SUFFIX
from ..stage import Context, ProgressTask
from .config import FanoutConfig
from .executor import Executor, JobResources, alive_jobs
from .job import (
    ENDED,
    LOG,
    RESULT,
    JobStatus,
    discard_result,
    is_done,
    read_progress,
    read_status,
    seconds_spent,
    write_status,
)

SETTLE_SECONDS = 5.0
"""Grace period for the final status file."""

SEEN_SECONDS = 90.0
"""Grace period for a result: a shared file system may show new names a minute late (acdirmax of NFS)."""

LOOKING = 0.1
"""Share of the time that goes into looking at jobs: many, or a slow file system, are looked at less often."""

LOOK_SECONDS = 300.0
"""Between two looks at most."""


class FanoutFailed(StageError):
    """Some jobs failed. The results of all others are kept."""


@dataclass
class Supervisor:
    """Brings the jobs of one `fan_out` to their end."""

    context: Context
    config: FanoutConfig
    resources: JobResources
    waiting: deque[Path] = field(default_factory=deque)
    running: set[Path] = field(default_factory=set)
    tries: Counter[Path] = field(default_factory=Counter)
    """Attempts in this command."""
    failed: list[Path] = field(default_factory=list)
    done: int = 0

    def run(self, folders: Sequence[Path]) -> None:
        log, stage = self.context.log, stage_of(self.context)
        alive = self._alive(folders)
        self.waiting.extend(folder for folder in folders if folder not in alive and not self.is_done(folder))
        self.done = len(folders) - len(self.waiting) - len(alive)
        if not self.waiting and not alive:
            return
        if self.done:
            log.info("%s: %d of %d jobs are already done", stage, self.done, len(folders))
        executor = self.config.start(self.resources, self.context)
        try:
            for folder in alive:
                executor.adopt(folder)
            self.running |= alive
            with self._progress(len(folders)) as progress:
                self._drive(executor, progress)
        except BaseException:
            if self.running and self.config.kind.outlives_command:
                log.warning(
                    "jobs of %s queued or running on executor %s: %d; rerun the command to collect them",
                    *(stage, self.config.executor, len(self.running)),
                )
            raise
        finally:
            executor.close()
        if self.failed:
            raise FanoutFailed(self._list(len(folders)))
        if self.running:
            raise Detached(
                f"{stage}: {self.done} of {len(folders)} jobs done, {len(self.running)} queued or running on executor "
                f"{self.config.executor}; rerun the command to collect them"
            )

    def _drive(self, executor: Executor, progress: ProgressTask) -> None:
        pause = executor.poll_seconds
        while self.waiting or self.running:
            termination.check()
            free = len(self.waiting) if executor.slots is None else executor.slots - len(self.running)
            if batch := [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]:
                self._submit(executor, batch)
            began = time.monotonic()
            reasons = {folder: executor.ended(folder) for folder in sorted(self.running)}
            deadline = time.monotonic() + SETTLE_SECONDS  # one for all that were lost together
            for folder, reason in reasons.items():
                if reason is not None:
                    self._settle(folder, reason, progress, deadline)
            if self.config.detach and not self.waiting:
                return
            if all(reason is None for reason in reasons.values()):
                self._show(progress)
                termination.check()  # what a signal raised inside of an engine may be lost
                # No more than twice as long as before: a single slow look says little.
                wanted = min((time.monotonic() - began) / LOOKING, LOOK_SECONDS, 2 * pause)
                pause = max(executor.poll_seconds, wanted)
                time.sleep(pause)

    def _submit(self, executor: Executor, folders: Sequence[Path]) -> None:
        for folder in folders:
            status = read_status(folder)
            status = replace(
                status,
                state="submitted",
                attempts=status.attempts + 1,
                seconds=seconds_spent(folder, status),
                started=None,
                executor=self.config.executor,
                error="",
            )
            write_status(folder, status)
            self.tries[folder] += 1
        self.running |= set(folders)
        executor.submit(folders)

    def _settle(self, folder: Path, reason: str, progress: ProgressTask, deadline: float) -> None:
        """Look how a job that has ended did, and start it again if it may."""
        self.running.discard(folder)
        status = _last_status(folder, deadline)
        if status.state not in ENDED:
            error = reason or "its monitor died"
            status = replace(status, state="died", error=error, seconds=seconds_spent(folder, status), started=None)
        if status.state == "done" and not (_is_seen(folder / RESULT) and self.is_done(folder)):
            status = replace(status, state="failed", error="its result is missing or damaged")
        write_status(folder, status)
        if status.state == "done":
            self.done += 1
            progress.advance(1)
        elif self.tries[folder] <= self.config.retries:
            self.context.log.warning("%s: %s; restarting", folder.name, status.error)
            self.waiting.append(folder)
        else:
            self.context.log.warning("%s: %s", folder.name, status.error)
            self.failed.append(folder)

    def is_done(self, folder: Path) -> bool:
        """Whether the job's result is there and sound; one that is damaged is removed."""
        try:
            done = is_done(folder)
        except StageError as error:
            self.context.log.warning("%s: damaged result; rerunning (%s)", folder.name, error)
            discard_result(folder)
            return False
        status = read_status(folder)
        if done and status.state != "done":  # it was killed before it could say so
            write_status(folder, replace(status, state="done", seconds=seconds_spent(folder, status), started=None))
        return done

    def _alive(self, folders: Sequence[Path]) -> set[Path]:
        """Jobs that an earlier command submitted and that have not ended."""
        alive = alive_jobs(folders)
        if others := sorted(set(alive.values()) - {self.config.executor}):
            raise StageError(
                f"{len(alive)} jobs of {stage_of(self.context)} are queued or running on executor {others[0]}, "
                f"submitted by an earlier command. Wait for them with executor={others[0]}, or cancel them"
            )
        return set(alive)

    def _progress(self, total: int) -> AbstractContextManager[ProgressTask]:
        if self.config.kind.in_this_process:
            return nullcontext(_Silent())  # the jobs show their own
        shown: AbstractContextManager[ProgressTask] = self.context.progress(
            f"{stage_of(self.context)} jobs", total, self.done
        )
        return shown

    def _show(self, progress: ProgressTask) -> None:
        texts = (f"{folder.name}: {text}" for folder in sorted(self.running) if (text := read_progress(folder)))
        progress.note(next(texts, ""))
        progress.advance(0)

    def _list(self, total: int) -> str:
        lines = []
        for folder in sorted(self.failed):
            status = read_status(folder)
            lines.append(
                f"  {folder.name}: {status.error} ({status.state} after {status.attempts} "
                f"{'attempt' if status.attempts == 1 else 'attempts'}, {duration(status.seconds)}; log: {folder / LOG})"
            )
        return (
            f"{len(self.failed)} of {total} jobs of stage {stage_of(self.context)!r} failed. The results of the others "
            "are kept; rerun the command to rerun only these:\n" + "\n".join(lines)
        )


class _Silent:
    def advance(self, amount: float = 1) -> None: ...
    def note(self, text: str) -> None: ...


def _last_status(folder: Path, deadline: float) -> JobStatus:
    """The status that the job's watcher wrote last; over a network it may take a moment to be seen here."""
    while (status := read_status(folder)).state not in ENDED and time.monotonic() < deadline:
        time.sleep(0.1)
    return status


def _is_seen(path: Path) -> bool:
    """Whether there is such a name, by a list of its folder, for which NFS asks the server; to a look for the name it
    may answer from memory."""
    deadline = time.monotonic() + SEEN_SECONDS
    while not (seen := path in path.parent.iterdir()) and time.monotonic() < deadline:
        time.sleep(1.0)
    return seen


def stage_of(context: Context) -> str:
    """Name of the stage."""
    return context.jobs.name.removesuffix(JOBS_SUFFIX)
