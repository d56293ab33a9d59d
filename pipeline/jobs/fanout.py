"""Hours of work as jobs, each with a folder of its own, on the executor that the config names.

A job that raises, dies or hangs costs only itself; the same command continues, with what is missing alone. What a job
is stands in job.py, where it runs in executors/. For minutes of work inside a stage, whose results come back as
objects and leave nothing on disk, there are `run_jobs` and `run_all` (pool.py).
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import artifact, termination
from ..errors import Detached, StageError
from ..logging import duration
from ..run_folder import JOBS_SUFFIX, jobs_folder, partial_folder
from ..stage import Context, ProgressTask
from .config import FanoutConfig
from .executor import Executor, JobResources, alive_jobs, cancel_job
from .job import (
    ENDED,
    LOG,
    RESULT,
    SPEC,
    SUBMISSION,
    FolderJob,
    JobFunction,
    JobKeys,
    JobStatus,
    discard_result,
    is_done,
    prepare,
    read_job,
    read_progress,
    read_status,
    seconds_spent,
    write_status,
)
from .pool import JobFailure, run_all, run_jobs

__all__ = [
    "Detached",
    "FanoutConfig",
    "FanoutFailed",
    "FolderJob",
    "JobFailure",
    "MemberJobs",
    "fan_out",
    "fan_out_members",
    "job_names",
    "pack_by_task",
    "prune",
    "run_all",
    "run_jobs",
    "stop",
]

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


def fan_out(
    jobs: Sequence[FolderJob],
    function: JobFunction,
    context: Context,
    config: FanoutConfig,
    *,
    cpus: int = 1,
    accelerator: str = "cpu",
    hashed: Collection[str] | None = None,
) -> dict[str, Path]:
    """Bring all jobs to their end, on the executor of `config`. A job that an earlier command has finished or begun is
    taken over, also from other settings of the stage.

    Args:
        function: of a module that can be imported wherever jobs run.
        context: of the stage. The jobs' folders are `context.jobs`/NAME, and they read `context.inputs`.
        cpus: CPU cores that a job makes good use of, unless `config` says otherwise.
        accelerator: as in accelerator.py.
        hashed: as in `JobKeys.of`.
    Returns:
        Folder of each job's result by the job's name; checked against its digests.
    Raises:
        FanoutFailed: with one line per job that failed, died, reached its time limit or was stopped.
        Detached: `config.detach`, and jobs are still queued or running.
        StageError: the executor is not there.
    """
    folders = {job.name: context.jobs / job.name for job in jobs}
    if len(folders) < len(jobs):
        raise ValueError("jobs must have different names")
    inputs = _inputs(context)
    keys = JobKeys.of(function, inputs, hashed, context.providers)
    _take_over({keys.key(job): folders[job.name] for job in jobs}, context)
    for path in job_folders(context.jobs):
        if path.name not in folders and not (path / RESULT).is_dir():
            _discard(path)
    resources = config.resources(context.threads if config.kind.in_this_process else cpus, accelerator, context.workers)
    fanout = _Fanout(context, config, resources)
    workers = context.workers if config.kind.in_this_process else resources.cpus
    missing = list(jobs)
    for _ in range(2):
        for job in missing:
            prepare(folders[job.name], job, keys.key(job), function, inputs, threads=resources.cpus, workers=workers)
        fanout.run([folders[job.name] for job in missing])
        # Again, since hours may have passed since a job ended, and what is wrong now would be published.
        missing = [job for job in jobs if not fanout.is_done(folders[job.name])]
        if not missing:
            return {name: folder / RESULT for name, folder in folders.items()}
    raise StageError(
        f"results of {_stage(context)} were deleted or changed after their jobs had finished, twice: "
        f"{', '.join(job.name for job in missing)} in {context.jobs}. Check the disk and whether another program "
        "writes there, then rerun the command"
    )


def _take_over(wanted: Mapping[str, Path], context: Context) -> None:
    """Move the folders of jobs with these keys to their place, wherever the stage has left them."""
    context.jobs.mkdir(exist_ok=True)
    for key, folder in wanted.items():
        if folder.exists() and (former := read_job(folder)[0]) != key:
            aside = folder.with_name(f"{folder.name}.{former[:8]}")
            if (folder / RESULT).is_dir() and not aside.exists():
                folder.rename(aside)
            else:
                _discard(folder)
    found = {read_job(path)[0]: path for path in reversed(_all_job_folders(context))}
    for key, folder in wanted.items():
        if not folder.exists() and key in found:
            found[key].rename(folder)


@dataclass(frozen=True)
class MemberJobs:
    """Members that jobs train side by side, several to a job; the split changes results by float rounding alone."""

    payload: Mapping[str, Any]
    """Of each job, without its `members`."""
    members: Sequence[Any]
    """JSON values."""
    pack: Callable[[Sequence[Any]], Mapping[str, Sequence[Any]]]
    """Cuts members into jobs: the members of each by its name."""
    not_hashed: Sequence[str] = ()
    """As in FolderJob."""


def fan_out_members(
    programs: Sequence[MemberJobs],
    function: JobFunction,
    context: Context,
    config: FanoutConfig,
    *,
    cpus: int = 1,
    accelerator: str = "cpu",
    hashed: Collection[str] | None = None,
) -> list[list[Path]]:
    """`fan_out` for programs. Members that an earlier command has finished are taken over one by one; a job that it has
    begun continues with the members that it has, unless that are more than `config.policies_per_job`.

    Returns:
        For each program, the folder of the result that each of its members is in.
    """
    context.jobs.mkdir(exist_ok=True)
    keys = JobKeys.of(function, _inputs(context), hashed, context.providers)
    former = {folder: read_job(folder) for folder in _all_job_folders(context)}

    def bring(folder: Path) -> Path:
        """Move a job's folder among those of this attempt."""
        place = folder if folder.parent == context.jobs else context.jobs / folder.name
        if place != folder and place.exists():
            place = context.jobs / f"{folder.name}.{former[folder][0][:8]}"
        folder.rename(place)
        former[place] = former.pop(folder)
        return place

    jobs: list[FolderJob] = []
    found: list[tuple[dict[str, Path], dict[str, str]]] = []
    for program in programs:
        left = {artifact.hash_json(member): member for member in program.members}
        done: dict[str, Path] = {}
        groups: dict[str, Sequence[Any]] = {}
        for folder, (key, payload) in list(former.items()):
            own = payload.get("members", ())
            if key != keys.key(FolderJob("", {**program.payload, "members": own}, program.not_hashed)):
                continue
            hashes = [artifact.hash_json(member) for member in own]
            if _is_sound(folder):
                if not left.keys().isdisjoint(hashes):
                    result = bring(folder) / RESULT
                    done |= {one: result for one in hashes if left.pop(one, None) is not None}
            elif left.keys() >= set(hashes) and len(own) <= (config.policies_per_job or len(own)):
                groups[bring(folder).name] = [left.pop(one) for one in hashes]
        for name, group in program.pack(list(left.values())).items() if left else ():
            groups[_unused(name, {*groups, *(job.name for job in jobs)}, context)] = group
        jobs += [
            FolderJob(name, {**program.payload, "members": list(group)}, program.not_hashed)
            for name, group in groups.items()
        ]
        # By program: two may have the same members, such as the variants of an algorithm.
        found.append((done, {artifact.hash_json(one): name for name, group in groups.items() for one in group}))
    results = fan_out(jobs, function, context, config, cpus=cpus, accelerator=accelerator, hashed=hashed)
    return [
        [done[one] if one in done else results[job_of[one]] for one in map(artifact.hash_json, program.members)]
        for program, (done, job_of) in zip(programs, found, strict=True)
    ]


def pack_by_task(members: Sequence[Any], per_job: int, slug: Callable[[Any], str]) -> dict[str, list[Any]]:
    """A job for the members of each task, or with `per_job` one for so many, task by task.

    Args:
        slug: name of a member's task in paths.
    """
    by_task: dict[str, list[Any]] = {}
    for member in members:
        by_task.setdefault(slug(member), []).append(member)
    ordered = [member for own in by_task.values() for member in own]
    parts = [ordered[i : i + per_job] for i in range(0, len(ordered), per_job)] if per_job else list(by_task.values())
    return dict(zip(job_names([list(map(slug, part)) for part in parts]), parts, strict=True))


def job_names(slugs: Sequence[Sequence[str]]) -> list[str]:
    """A name for each job: its number, its first task, and how many other tasks it has.

    Args:
        slugs: of the tasks of each job's members.
    """
    others = [f"+{len(set(own)) - 1}" if len(set(own)) > 1 else "" for own in slugs]
    return [f"{number:03d}-{own[0]}{more}" for number, (own, more) in enumerate(zip(slugs, others, strict=True))]


def _unused(name: str, taken: Container[str], context: Context) -> str:
    """A name that no job has: this one, or with a number."""
    names = itertools.chain([name], (f"{name}.{number}" for number in itertools.count(2)))
    return next(one for one in names if one not in taken and not (context.jobs / one).exists())


def _inputs(context: Context) -> dict[str, Path]:
    return {name: artifacts[0] for name, artifacts in context.inputs.items() if artifacts}


def _is_sound(folder: Path) -> bool:
    """Whether the job's result is there and whole."""
    with suppress(StageError):
        return is_done(folder)
    return False


@dataclass
class _Fanout:
    """The jobs of one `fan_out` on their way to their end."""

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
        log, stage = self.context.log, _stage(self.context)
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
                f"{len(alive)} jobs of {_stage(self.context)} are queued or running on executor {others[0]}, submitted "
                f"by an earlier command. Wait for them with executor={others[0]}, or cancel them"
            )
        return set(alive)

    def _progress(self, total: int) -> AbstractContextManager[ProgressTask]:
        if self.config.kind.in_this_process:
            return nullcontext(_Silent())  # the jobs show their own
        shown: AbstractContextManager[ProgressTask] = self.context.progress(
            f"{_stage(self.context)} jobs", total, self.done
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
            f"{len(self.failed)} of {total} jobs of stage {_stage(self.context)!r} failed. The results of the others "
            "are kept; rerun the command to rerun only these:\n" + "\n".join(lines)
        )


class _Silent:
    def advance(self, amount: float = 1) -> None: ...
    def note(self, text: str) -> None: ...


def stop(jobs: Path) -> None:
    """End the jobs of a stage that are queued or running without this command; they save their state."""
    for path in jobs.glob("*"):
        if (path / SUBMISSION).is_file():
            cancel_job(path)
            (path / SUBMISSION).unlink()


def prune(jobs: Path) -> None:
    """Remove what jobs of a published stage left unfinished. Results stay, for other settings of the stage; their files
    are those of the artifact (`artifact.link`)."""
    for path in job_folders(jobs):
        artifact.remove(partial_folder(path / RESULT))
        artifact.remove_unfinished(path)
    with suppress(OSError):  # jobs are left, or there were none
        jobs.rmdir()


def job_folders(jobs: Path) -> list[Path]:
    """The folders of a stage's jobs, by name."""
    return sorted(path for path in jobs.glob("*") if (path / SPEC).is_file())


def _all_job_folders(context: Context) -> list[Path]:
    """Of this attempt, and of earlier settings, the latest first."""
    places = dict.fromkeys([context.jobs, *map(jobs_folder, context.earlier)])
    return [path for place in places for path in job_folders(place)]


def _discard(folder: Path) -> None:
    cancel_job(folder)
    shutil.rmtree(folder)


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


def _stage(context: Context) -> str:
    return context.jobs.name.removesuffix(JOBS_SUFFIX)
