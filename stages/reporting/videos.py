"""Videos in the report: one episode of each task, embedded in the page."""

from __future__ import annotations

import base64
import importlib.util
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...pipeline.errors import ConfigError, TaskError
from ...pipeline.jobs.pool import run_all
from ...pipeline.stage import ProgressTask
from ..deployment.opengl import choose_opengl
from .results import ReportData

SIZE = 240
"""Width and height of a frame in pixels."""

DRAWN_BY_MUJOCO = ("dmc/", "metaworld/")


@dataclass(frozen=True)
class Video:
    """One task's."""

    task: str
    caption: str
    media: str = ""
    """Media type; empty if there is no video, and the caption says why."""
    content: str = ""
    """Base64."""


@dataclass(frozen=True)
class _Job:
    task: str
    algorithm: str
    seed: int
    policy: Path
    episode_seed: int

    def __str__(self) -> str:
        return f"recording {self.algorithm} on {self.task}"


def check_videos(tasks: Iterable[str]) -> None:
    """Raise an OrreryError if this machine cannot record tasks: without ffmpeg, or MuJoCo without OpenGL.

    Sets MUJOCO_GL for this process, before MuJoCo is imported.
    """
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ConfigError("report.videos needs imageio-ffmpeg: pip install 'orrery[video]', or set report.videos=false")
    if any(task.startswith(DRAWN_BY_MUJOCO) for task in tasks):
        try:
            choose_opengl()
        except TaskError as error:
            raise TaskError(f"report.videos: {error}. Or set report.videos=false") from error


def record_videos(data: ReportData, workers: int, progress: ProgressTask) -> list[Video]:
    """The first evaluation episode of each task's best policy: of the algorithm with the highest mean score, its lowest
    seed. Curves where a task has no picture."""
    jobs = list(_jobs(data))
    videos = {}
    for job, video in run_all(_record, jobs, workers=workers, kept="recorded videos"):
        videos[job.task] = video
        progress.note(job.task)
    return [videos[job.task] for job in jobs]


def _jobs(data: ReportData) -> Iterable[_Job]:
    means: dict[tuple[str, str], float] = {}
    if data.scores is not None:
        means = data.scores.groupby(["task", "algorithm"])["score"].mean().to_dict()
    episode_seed = int(data.summary.protocol.get("seed", 0))
    found: dict[str, list[_Job]] = {}
    for index in data.indices:
        for entry in index.entries:
            policy = index.artifact / entry["path"]
            job = _Job(entry["task"], entry["algorithm"], entry["seed"], policy, episode_seed)
            found.setdefault(job.task, []).append(job)
    for task in data.tasks:
        if own := found.get(task):
            yield max(own, key=lambda job: (means.get((job.task, job.algorithm), float("-inf")), -job.seed))


def _record(job: _Job) -> Video:
    """Runs in a worker process."""
    from ..deployment.playing import default_file, play
    from ..policy.policy import Policy

    policy = Policy.from_pretrained(job.policy)
    with tempfile.TemporaryDirectory() as folder:
        suffix = ".png" if default_file(policy.task).suffix == ".png" else ".mp4"
        try:
            played = play(policy, Path(folder, f"video{suffix}"), seed=job.episode_seed, size=SIZE)
        except TaskError as error:
            return Video(job.task, f"no video: {error}")
        (result,) = played.results
        content = base64.b64encode(played.out.read_bytes()).decode()
    success = {True: ", success", False: ", no success", None: ""}[result.success_any]
    caption = f"{job.algorithm}, seed {job.seed}: return {result.return_:.4g}{success}"
    return Video(job.task, caption, "image/png" if suffix == ".png" else "video/mp4", content)
