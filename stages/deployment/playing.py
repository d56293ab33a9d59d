"""Episodes of one policy, as a video or as curves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...datasets.rollout import EpisodeResult, play_episodes, policy_act
from ...datasets.schema import TaskSpec
from ...datasets.tasks import task_spec
from ...datasets.tasks.task_env import TaskEnv
from ...pipeline.errors import TaskError
from ...pipeline.paths import user_path
from ..evaluation.scores import evaluation_seed
from ..policy.policy import Policy
from .choice import made_by
from .curves import draw_curves
from .opengl import choose_opengl
from .video import VIDEOS, VideoEnv, check_writable, partial

CURVES = (".png",)

_DRAWN_BY_MUJOCO = ("dm_control", "metaworld")
"""Kinds of environments. Of gymnasium's, some are; those say themselves what they lack."""


@dataclass(frozen=True)
class Played:
    """What came of it."""

    results: list[EpisodeResult]
    out: Path
    frames: int
    """0 of curves."""
    frames_per_second: float


def default_file(spec: TaskSpec) -> Path:
    """A GIF in the working directory, or a PNG of what nothing draws."""
    return Path(spec.slug + (".png" if spec.environment.get("kind") == "myriad" else ".gif"))


def play(
    policy: Policy,
    out: Path | None = None,
    *,
    task: str | None = None,
    episodes: int = 1,
    seed: int = 0,
    size: int = 240,
    on_episode: Callable[[int, EpisodeResult], None] = lambda index, result: None,
) -> Played:
    """Play a policy and show it.

    Args:
        out: .gif or .mp4 for pictures, .png for curves; None takes `default_file`.
        task: another task of the same shape to play in; None is the policy's own.
        seed: with it, the task and the policy's seed, episodes start as those that the stage `evaluate` plays.
        size: edge of a picture in pixels, where the task lets one choose.
        on_episode: told of each episode that ends.
    Raises:
        TaskError: the task is unknown, of another shape, has no environment, or cannot be drawn.
        ConfigError: `out` cannot be written.
    """
    spec = policy.task if task is None else task_of_the_same_shape(policy.task, task)
    out = default_file(spec) if out is None else user_path(out)
    as_video = out.suffix.lower() in VIDEOS
    check_writable(out, (*VIDEOS, *CURVES))
    seeds = [evaluation_seed(seed, spec.name, int(made_by(policy)["seed"]), episode) for episode in range(episodes)]
    results: list[EpisodeResult] = []
    recorder = None
    try:
        if as_video:
            recorder = _video_env(spec, out, size)
        pool: list[TaskEnv] = [] if recorder is None else [recorder]
        played = play_episodes(spec, policy_act(policy), seeds, record=recorder is None, lanes=1, pool=pool)
        for index, result in played:
            results.append(result)
            on_episode(index, result)
            if result.error is not None:
                raise TaskError(f"episode {index} of {spec.name} failed: {result.error}")
        if recorder is not None:
            recorder.finish()
            return Played(results, out, recorder.frames, recorder.frames_per_second)
        draw_curves([result.episode for result in results if result.episode], spec.name, out)
        return Played(results, out, 0, 0.0)
    finally:
        if recorder is not None:
            recorder.close()
        partial(out).unlink(missing_ok=True)


def _video_env(spec: TaskSpec, out: Path, size: int) -> VideoEnv:
    kind = spec.environment.get("kind")
    if kind == "myriad":
        raise TaskError(f"{spec.name} is a system of equations and cannot be rendered; --out FILE.png draws its curves")
    if kind in _DRAWN_BY_MUJOCO:
        choose_opengl()
    return VideoEnv(spec, out, size)


def task_of_the_same_shape(own: TaskSpec, name: str) -> TaskSpec:
    """The task of this name, on which a policy for `own` can act.

    Raises:
        TaskError: it is unknown, or has other numbers of observation columns or actions.
    """
    other = task_spec(name)

    def shape(spec: TaskSpec) -> str:
        actions = "choices" if spec.action_kind == "discrete" else "action components"
        return f"{spec.observation_dim} observation columns and {spec.action_dim} {actions}"

    if shape(own) != shape(other):
        raise TaskError(f"the policy was trained for {own.name} ({shape(own)}), {other.name} has {shape(other)}")
    return other
