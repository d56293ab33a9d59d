"""Many independent jobs over a few processes: in which order they finish, and what one failure costs.

A job that raises, or whose process dies, is reported and costs only itself. Workers are spawned (never
forked: torch, MuJoCo and OpenMP hold threads), so `function` must be importable and jobs picklable.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from .. import termination
from ..errors import OrreryError, StageError
from ..run_folder import disk_errors

Job = TypeVar("Job")
Result = TypeVar("Result")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class JobFailure(Generic[Job]):
    """Stands where the result of a failed job would be."""

    job: Job
    error: str
    """One line: the exception's type and message (its message alone where it is an OrreryError), or that the process
    died."""
    traceback: str
    """Empty when the process died and left none, and after an OrreryError, whose message says all."""


def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], *, workers: int
) -> Iterator[tuple[int, Result | JobFailure[Job]]]:
    """Yield (index, result) for each job, in the order in which they finish.

    Args:
        function: called with one job; a module-level function unless `workers` is at most 1.
        jobs: one argument each.
        workers: processes. At most 1 runs the jobs in this process, one after another.
    Yields:
        The job's position in `jobs`, and what `function` returned or a JobFailure.
    """
    if workers <= 1:
        for index, job in enumerate(jobs):
            yield index, _guarded(function, job)
        return

    waiting = deque(range(len(jobs)))
    idle = [_Worker() for _ in range(min(workers, len(jobs)))]
    running: dict[Future[Any], tuple[int, _Worker]] = {}
    completed = False
    try:
        while waiting or running:
            while waiting and idle:
                index, worker = waiting.popleft(), idle.pop()
                running[worker.submit(function, jobs[index])] = index, worker
            termination.check()
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                index, worker = running.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    worker.stop(kill=True)
                    worker = _Worker()
                idle.append(worker)
                yield index, future.result() if error is None else _failure(jobs[index], error)
        completed = True
    finally:
        # On Ctrl-C, or when the caller stops iterating, jobs under way are not waited for.
        for worker in [*idle, *(worker for _, worker in running.values())]:
            worker.stop(kill=not completed)


def run_all(
    function: Callable[[Job], Result], jobs: Sequence[Job], *, workers: int, kept: str = ""
) -> Iterator[tuple[Job, Result]]:
    """Yield (job, result) for each job, in the order in which they finish; none may fail.

    Args:
        function, jobs, workers: as `run_jobs` takes them; str(job) says what a job is about.
        kept: what of earlier jobs the stage finds again when it is continued.
    Raises:
        StageError: at the first failure; jobs under way are not waited for.
    """
    for index, outcome in run_jobs(function, jobs, workers=workers):
        if isinstance(outcome, JobFailure):
            hint = f"; {kept} are kept; rerun the command to continue" if kept else ""
            error = StageError(f"{jobs[index]}: {outcome.error}{hint}")
            error.add_note(outcome.traceback)  # for the log
            raise error
        yield jobs[index], outcome


class _Worker:
    """One process with a pool to itself, so that a death is the fault of exactly one job."""

    def __init__(self) -> None:
        context = get_context("spawn")
        # The child exits when this end of the pipe closes, which the kernel also does when this process is
        # killed. (PR_SET_PDEATHSIG would fire when the *thread* that started the child ends.)
        child_end, self._lifeline = context.Pipe(duplex=False)
        self._child_end = child_end  # must stay open until the child has been spawned, at the first submit
        self._pool = ProcessPoolExecutor(
            max_workers=1, mp_context=context, initializer=_start_worker, initargs=(child_end,)
        )

    def submit(self, function: Callable[[Job], Result], job: Job) -> Future[Any]:
        with termination.kept_from_children():
            return self._pool.submit(_guarded, function, job)

    def stop(self, *, kill: bool = False) -> None:
        if kill:
            self._lifeline.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._lifeline.close()
        self._child_end.close()


def _start_worker(lifeline: Connection) -> None:
    """Prepare a spawned process before it imports anything heavy."""
    termination.leave_to_parent()
    for variable in THREAD_VARIABLES:
        os.environ[variable] = "1"
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # those of libraries, once per process, would cut through the progress line
    threading.Thread(target=_exit_with_parent, args=(lifeline,), daemon=True).start()


def _exit_with_parent(lifeline: Connection) -> None:
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


def _guarded(function: Callable[[Job], Result], job: Job) -> Result | JobFailure[Job]:
    # Caught where it is raised: an exception that cannot be pickled would take the pool with it.
    try:
        with disk_errors():
            return function(job)
    except Exception as error:
        return _failure(job, error)


def _failure(job: Job, error: BaseException) -> JobFailure[Job]:
    if isinstance(error, BrokenProcessPool):
        return JobFailure(job, "the process died (killed, out of memory, or crashed in native code)", "")
    if isinstance(error, OrreryError):
        return JobFailure(job, " ".join(str(error).split()), "")
    message = " ".join(f"{type(error).__name__}: {error}".split())
    return JobFailure(job, message, "".join(traceback.format_exception(error)))
