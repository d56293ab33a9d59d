"""`metaworld/<name>-v3`: the 50 tasks of Meta-World, goal observable, one random goal per episode.

Protocol of TD-MPC2 (arXiv 2310.16828): action repeat 2, 100 steps, the v2 reward, 39 observation columns, score =
share of episodes with success at any step. Ours draws goals from the environment's own generator; the released code
draws them from numpy's global one, so that its episodes cannot be repeated.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from ...pipeline.errors import TaskError
from ..schema import TaskSpec

_TASKS = [
    "assembly", "basketball", "bin-picking", "box-close", "button-press", "button-press-topdown",
    "button-press-topdown-wall", "button-press-wall", "coffee-button", "coffee-pull", "coffee-push", "dial-turn",
    "disassemble", "door-close", "door-lock", "door-open", "door-unlock", "drawer-close", "drawer-open",
    "faucet-close", "faucet-open", "hammer", "hand-insert", "handle-press", "handle-press-side", "handle-pull",
    "handle-pull-side", "lever-pull", "peg-insert-side", "peg-unplug-side", "pick-out-of-hole", "pick-place",
    "pick-place-wall", "plate-slide", "plate-slide-back", "plate-slide-back-side", "plate-slide-side", "push",
    "push-back", "push-wall", "reach", "reach-wall", "shelf-place", "soccer", "stick-pull", "stick-push", "sweep",
    "sweep-into", "window-close", "window-open",
]  # fmt: skip
"""`metaworld.ALL_V3_ENVIRONMENTS`, written out so that a name can be checked without importing the simulator."""

OBSERVATION_DIM = 39
ACTION_DIM = 4
CAMERA = "corner2"
ACTION_REPEAT = 2
EPISODE_LENGTH = 100


def names() -> list[str]:
    """Return the names of all tasks of the suite."""
    return [f"metaworld/{task}-v3" for task in _TASKS]


def resolve(name: str) -> str | None:
    """Return the canonical name of a task; None if the suite has no such task."""
    return name if name in names() else None


def spec(name: str) -> TaskSpec:
    """Describe a task, given its canonical name."""
    return TaskSpec(
        name=name,
        observation_dim=OBSERVATION_DIM,
        action_dim=ACTION_DIM,
        episode_length=EPISODE_LENGTH,
        action_repeat=ACTION_REPEAT,
        reports_success=True,
        score_kind="success",
        environment={"kind": "metaworld", "task": name.removeprefix("metaworld/")},
    )


def make(spec: TaskSpec, picture: int | None = None) -> MetaWorld:
    """Build the suite's environment; `picture` is the edge of rendered frames in pixels."""
    return MetaWorld(spec.environment["task"], picture or 240)


class MetaWorld(gymnasium.Env[np.ndarray, np.ndarray]):
    """One Meta-World environment in its own steps, reseeded at every reset."""

    def __init__(self, task: str, picture: int = 240) -> None:
        # This module, not the package: the package registers gymnasium ids at import that nothing here uses.
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

        key = f"{task}-goal-observable"
        if key not in ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE:
            raise TaskError(
                f"Meta-World has no task {task!r}; orrery.datasets.tasks.task_names('metaworld') lists them"
            )
        # Its class is generated at import, with a constructor that the annotations of its base do not know.
        build: Any = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[key]
        self._environment = build(seed=0)
        self._environment._freeze_rand_vec = False
        self._environment.seeded_rand_vec = True
        # Its own observation space has bounds 0..0 for the goal, which the observations then violate.
        self.observation_space = spaces.Box(-np.inf, np.inf, (OBSERVATION_DIM,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)
        self.metadata = {"render_fps": round(1 / self._environment.dt)}
        self._picture = picture
        self._renderer: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:  # Meta-World ignores reset(seed=)
            self._environment.seed(seed)
        observation, _ = self._environment.reset()
        return observation, {"success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self._environment.step(action)
        return observation, float(reward), terminated, truncated, {"success": bool(info["success"])}

    def render(self) -> Any:
        import mujoco

        if self._renderer is None:
            self._renderer = mujoco.Renderer(self._environment.model, self._picture, self._picture)
        self._renderer.update_scene(self._environment.data, camera=CAMERA)
        return self._renderer.render()[::-1]  # this camera stands on its head

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
        self._environment.close()
