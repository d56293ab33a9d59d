"""What a stage computes when one of its settings grows."""

from pathlib import Path

from orrery.datasets.store import TaskStore
from orrery.pipeline.artifact import finish
from orrery.pipeline.jobs.fanout import job_folders
from orrery.pipeline.jobs.job import read_job, read_status
from orrery.pipeline.stage import Context

from .stores import write_store


def pack_store(folder: Path, tasks) -> TaskStore:
    """A store as the stage pack leaves it, with a manifest."""
    store = write_store(folder, tasks)
    finish(folder, kind="store", stage="pack", key="", config={}, inputs={}, seconds=0, summary="")
    return store


def computed(context: Context) -> dict[str, int]:
    """Members that each job of a stage has computed, by its name; no job has run more than once."""
    jobs = job_folders(context.jobs)
    assert {read_status(job).attempts for job in jobs} == {1}
    return {job.name: len(read_job(job)[1].get("members", [""])) for job in jobs}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of an artifact."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
