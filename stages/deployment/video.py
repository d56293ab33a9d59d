"""Videos of episodes: an environment that records its frames, and the file they are written to."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.schema import TaskSpec
from ...datasets.tasks import make_environment
from ...datasets.tasks.task_env import TaskEnv
from ...pipeline.errors import ConfigError, TaskError

FRAMES_PER_SECOND = 30
"""At most, in the time of the task: of faster environments some steps are left out."""

DEFAULT_RATE = 30
"""Steps per second of an environment that does not say how long one lasts."""

VIDEOS = (".gif", ".mp4")


def check_writable(out: Path, suffixes: tuple[str, ...]) -> None:
    """Raises ConfigError: the suffix is another, its package is missing, or the file cannot be written."""
    if out.suffix.lower() not in suffixes:
        raise ConfigError(f"{out}: expected a file name that ends in {', '.join(suffixes)}")
    if out.suffix.lower() == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ConfigError(
            f"{out}: MP4 needs imageio-ffmpeg: pip install 'orrery[video]', or write {out.with_suffix('.gif')}"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial(out).touch()
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}; give another file with --out") from error


def partial(out: Path) -> Path:
    """Where a file is written until it is whole. Its suffix is the file's own, which decides the format."""
    return out.with_name(f".partial-{out.name}")


class VideoEnv(TaskEnv):
    """An environment whose episodes are written to a file as they are played, every `every`-th step a picture."""

    def __init__(self, spec: TaskSpec, out: Path, size: int) -> None:
        """Args:
            size: edge of a picture in pixels, where the task lets one choose.
        Raises:
            TaskError: the task cannot be drawn.
        """
        built = make_environment(spec, picture=size)
        super().__init__(built.native, spec)
        rate = float((self.native.metadata or {}).get("render_fps") or DEFAULT_RATE) / spec.action_repeat
        self.every = math.ceil(rate / FRAMES_PER_SECOND)
        self.frames_per_second = rate / self.every
        self.frames = 0
        self._played = 0
        self._check_draws()
        import imageio.v2

        self._out = out
        gif = out.suffix.lower() == ".gif"
        how: dict[str, Any] = {"duration": 1000 / self.frames_per_second, "loop": 0} if gif else {
            "fps": self.frames_per_second, "macro_block_size": 2}  # fmt: skip
        self._writer = imageio.v2.get_writer(partial(out), mode="I", **how)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        found = super().reset(seed=seed, options=options)
        self._played = 0
        self._take()
        return found

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        found = super().step(action)
        self._played += 1
        if self._played % self.every == 0 or found[2] or found[3]:
            self._take()
        return found

    def finish(self) -> None:
        """Put the file in place."""
        self._writer.close()
        partial(self._out).replace(self._out)

    def close(self) -> None:
        self._writer.close()
        super().close()

    def _take(self) -> None:
        self._writer.append_data(self._picture())
        self.frames += 1

    def _picture(self) -> np.ndarray:
        return np.ascontiguousarray(self.native.render())

    def _check_draws(self) -> None:
        """Draw once before an episode, in which an error would be taken for the episode's."""
        try:
            super().reset(seed=0)
            picture = self._picture()
        except Exception as error:  # whatever a window system raises
            raise TaskError(
                f"task {self.task.name!r} cannot be rendered: {type(error).__name__}: {' '.join(str(error).split())}. "
                "--out FILE.png draws curves instead"
            ) from error
        if picture.ndim != 3 or picture.shape[2] != 3:
            raise TaskError(
                f"task {self.task.name!r} renders arrays of shape {picture.shape}, expected frames [height, width, 3]"
            )
