"""Hours of work as jobs, each with a folder of its own, on the executor that the config names.

A job that raises, dies or hangs costs only itself; the same command continues, with what is missing alone. What a job
is stands in job.py, where it runs in executors/. For minutes of work inside a stage, whose results come back as
objects and leave nothing on disk, there are `run_jobs` and `run_all` (pool.py).
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import artifact
from ..errors import Detached, StageError
from ..run_folder import jobs_folder, partial_folder
from ..stage import Context
from .config import FanoutConfig
from .executor import cancel_job
from .job import (
    RESULT,
    SPEC,
    SUBMISSION,
    FolderJob,
    JobFunction,
    JobKeys,
    is_done,
    prepare,
    read_job,
)
from .pool import JobFailure, run_all, run_jobs
from .supervisor import FanoutFailed, Supervisor, stage_of

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
    supervisor = Supervisor(context, config, resources)
    workers = context.workers if config.kind.in_this_process else resources.cpus
    missing = list(jobs)
    for _ in range(2):
        for job in missing:
            prepare(folders[job.name], job, keys.key(job), function, inputs, threads=resources.cpus, workers=workers)
        supervisor.run([folders[job.name] for job in missing])
        # Again, since hours may have passed since a job ended, and what is wrong now would be published.
        missing = [job for job in jobs if not supervisor.is_done(folders[job.name])]
        if not missing:
            return {name: folder / RESULT for name, folder in folders.items()}
    raise StageError(
        f"results of {stage_of(context)} were deleted or changed after their jobs had finished, twice: "
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
