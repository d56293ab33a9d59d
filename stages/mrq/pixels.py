"""dm_control tasks with image observations: 84 x 84 pixels, stacked frames.

Importing this file registers the environment, so that every process can build it from its TaskSpec by name.

Protocol of MR.Q (arXiv 2501.16142) and DrQ-v2: camera 0 (2 for quadrupeds), action repeat 2, three frames, one per
step; an episode starts with its first frame repeated.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from ...datasets.schema import TaskSpec
from ...datasets.tasks.dm_control import DmControl
from ...pipeline.errors import ConfigError
from .config import IMAGE_SIZE

IDENTIFIER = "DmControlPixels-v0"


class DmControlPixels(gymnasium.Env[np.ndarray, np.ndarray]):
    """A step is a step of `repeat` simulator steps; observations are [3 * frames, 84, 84] uint8, oldest first."""

    def __init__(self, domain: str, task: str, repeat: int, frames: int, camera: int) -> None:
        self._native = DmControl(domain, task)
        self._repeat, self._camera = repeat, camera
        self._stack: deque[np.ndarray] = deque(maxlen=frames)
        self.observation_space = spaces.Box(0, 255, (3 * frames, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
        self.action_space = self._native.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self._native.reset(seed=seed)
        frame = self._frame()
        for _ in range(self._stack.maxlen or 1):
            self._stack.append(frame)
        return np.concatenate(self._stack), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self._repeat):
            _, reward, terminated, truncated, info = self._native.step(action)
            total += reward
            if terminated or truncated:
                break
        self._stack.append(self._frame())
        return np.concatenate(self._stack), total, terminated, truncated, info

    def _frame(self) -> np.ndarray:
        physics = self._native._environment.physics
        image = physics.render(height=IMAGE_SIZE, width=IMAGE_SIZE, camera_id=self._camera)
        return np.ascontiguousarray(image.transpose(2, 0, 1))

    def render(self) -> Any:
        return self._native.render()

    def close(self) -> None:
        self._native.close()


gymnasium.register(IDENTIFIER, entry_point=f"{__name__}:{DmControlPixels.__name__}")


def pixel_spec(spec: TaskSpec, frames: int) -> TaskSpec:
    """Return the task `dmc_pixels/...`: the dm_control task `spec` with image observations.

    Raises:
        ConfigError: `spec` is not of dm_control.
    """
    if spec.environment.get("kind") != "dm_control":
        raise ConfigError(f"pixels are supported for dm_control tasks only, found {spec.name!r}")
    domain, task = spec.environment["domain"], spec.environment["task"]
    return dataclasses.replace(
        spec,
        name=f"dmc_pixels/{domain}-{task}",
        observation_dim=3 * frames * IMAGE_SIZE**2,
        action_repeat=1,
        environment={
            "kind": "gymnasium",
            "id": f"{__name__}:{IDENTIFIER}",
            "kwargs": {
                "domain": domain, "task": task, "repeat": spec.action_repeat, "frames": frames,
                "camera": 2 if domain == "quadruped" else 0,
            },
        },
    )  # fmt: skip
