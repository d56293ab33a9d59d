"""`dmc/<domain>-<task>`: the DeepMind Control Suite from proprioceptive state.

Protocol of TD-MPC2 (arXiv 2310.16828): action repeat 2, 500 steps, observations concatenated in the order in which
dm_control lists them, score = return / 1000. The lqr tasks differ: their reward is unbounded below, they can reach a
terminal state, and dm_control gives them no time limit. The 11 tasks that TD-MPC2 adds to the suite are here as well,
under its names (`dmc/walker-run-backwards`).
"""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from ...pipeline.errors import TaskError
from ..schema import TaskSpec

_SIZES = {
    f"dmc/{domain}-{task}": (observation_dim, action_dim)
    for domain, tasks, observation_dim, action_dim in (
        ("acrobot", "swingup swingup_sparse", 6, 1),
        ("ball_in_cup", "catch spin", 8, 2),
        ("cartpole", "balance balance_sparse swingup swingup_sparse", 5, 1),
        ("cartpole", "two_poles", 8, 1),
        ("cartpole", "three_poles", 11, 1),
        ("cheetah", "run run-backwards run-front run-back jump", 17, 6),
        ("dog", "stand walk trot run", 223, 38),
        ("dog", "fetch", 232, 38),
        ("finger", "spin", 9, 2),
        ("finger", "turn_easy turn_hard", 12, 2),
        ("fish", "upright", 21, 5),
        ("fish", "swim", 24, 5),
        ("hopper", "stand hop hop-backwards", 15, 4),
        ("humanoid", "stand walk run", 67, 21),
        ("humanoid", "run_pure_state", 55, 21),
        ("humanoid_CMU", "stand walk run", 137, 56),
        ("lqr", "lqr_2_1", 4, 1),
        ("lqr", "lqr_6_2", 12, 2),
        ("manipulator", "bring_ball bring_peg insert_ball insert_peg", 44, 5),
        ("pendulum", "swingup spin", 3, 1),
        ("point_mass", "easy hard", 4, 2),
        ("quadruped", "walk run", 78, 12),
        ("quadruped", "escape", 101, 12),
        ("quadruped", "fetch", 90, 12),
        ("reacher", "easy hard", 6, 2),
        ("reacher", "three-easy three-hard", 8, 3),
        ("stacker", "stack_2", 49, 5),
        ("stacker", "stack_4", 63, 5),
        ("swimmer", "swimmer6", 25, 5),
        ("swimmer", "swimmer15", 61, 14),
        ("walker", "stand walk run walk-backwards run-backwards", 24, 6),
    )
    for task in tasks.split()
}
"""`dm_control.suite.ALL_TASKS` and TD-MPC2's, with the columns of observation and action, written out so that names can
be checked and tasks described without importing dm_control (a second)."""

_NEEDS_RENDERER = ("quadruped", "escape")

ACTION_REPEAT = 2
EPISODE_LENGTH = 500


def names() -> list[str]:
    """Return the names of all tasks of the suite."""
    return list(_SIZES)


def resolve(name: str) -> str | None:
    """Return the canonical name of a task; None if the suite has no such task."""
    return {_plain(canonical): canonical for canonical in _SIZES}.get(_plain(name))


def _plain(name: str) -> str:
    """A name as TD-MPC2 spells it: `dmc/cup-catch`, `dmc/finger-turn-easy`."""
    return name.replace("_", "-").replace("dmc/ball-in-cup-", "dmc/cup-")


def spec(name: str) -> TaskSpec:
    """Describe a task, given its canonical name."""
    domain, task = name.removeprefix("dmc/").split("-", 1)
    observation_dim, action_dim = _SIZES[name]
    is_lqr = domain == "lqr"
    return TaskSpec(
        name=name,
        observation_dim=observation_dim,
        action_dim=action_dim,
        episode_length=EPISODE_LENGTH,
        action_repeat=ACTION_REPEAT,
        terminates=is_lqr,
        score_kind="normalised" if is_lqr else "return_per_1000",
        environment={"kind": "dm_control", "domain": domain, "task": task},
    )


def make(spec: TaskSpec, picture: int | None = None) -> DmControl:
    """Build the suite's environment; `picture` is the edge of rendered frames in pixels."""
    return DmControl(spec.environment["domain"], spec.environment["task"], picture or 240)


class DmControl(gymnasium.Env[dict[str, Any], np.ndarray]):
    """One dm_control environment behind gymnasium's interface, in its own steps and action bounds.

    The environment is built once and reused: a reset only replaces the task's random state, which is all that an
    episode draws from, and is some 100 times faster than building (0.7 ms against 70 ms for cartpole).
    """

    action_space: spaces.Box

    def __init__(self, domain: str, task: str, picture: int = 240) -> None:
        if (domain, task) == _NEEDS_RENDERER and not (os.environ.get("MUJOCO_GL") or os.environ.get("DISPLAY")):
            raise TaskError(
                f"dm_control's {domain}-{task} needs a rendering context at every reset and finds no display here; set "
                "the environment variable MUJOCO_GL=egl (or osmesa)"
            )
        with warnings.catch_warnings():
            # Importing dm_control probes for a display and warns if there is none, which is no fault here.
            warnings.filterwarnings("ignore", message=".*DISPLAY environment variable is missing.*")
            from dm_control import suite

            from . import tdmpc2_environments
        _repair_quadruped(suite.quadruped)

        if (domain, task) in tdmpc2_environments.BUILD:
            self._environment = tdmpc2_environments.BUILD[domain, task]()
        else:
            try:
                # `random` also draws the stiffnesses of the lqr models, so it is fixed: the task is the same in every
                # process.
                self._environment = suite.load(domain, task, task_kwargs={"random": 0})
            except ValueError as error:
                raise TaskError(f"dm_control has no task {domain}-{task}: {error}") from error
        # In the order of dm_control; gymnasium would sort the keys of a plain dict.
        self.observation_space = spaces.Dict(
            OrderedDict(
                (name, spaces.Box(-np.inf, np.inf, part.shape, np.float64))
                for name, part in self._environment.observation_spec().items()
            )
        )
        bounds = self._environment.action_spec()
        low, high = np.broadcast_to(bounds.minimum, bounds.shape), np.broadcast_to(bounds.maximum, bounds.shape)
        self.action_space = spaces.Box(low, high, bounds.shape, np.float64)
        self.metadata = {"render_fps": round(1 / self._environment.control_timestep())}
        self._picture = picture

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        # dm_control has no public way to reseed a task that exists; its `random` property returns this attribute.
        self._environment.task._random = np.random.RandomState(seed)
        return self._environment.reset().observation, {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        timestep = self._environment.step(action)
        terminated = timestep.last() and timestep.discount == 0
        truncated = timestep.last() and not terminated
        return timestep.observation, float(timestep.reward), terminated, truncated, {}

    def render(self) -> Any:
        return self._environment.physics.render(height=self._picture, width=self._picture, camera_id=0)

    def close(self) -> None:
        self._environment.close()


def _repair_quadruped(quadruped: Any) -> None:
    """Give the quadruped tasks back the sensor names that they look up with `numpy.in1d`, which numpy 2.4 removed.

    dm_control releases without that call need a newer MuJoCo than Meta-World accepts.
    """
    if hasattr(np, "in1d"):
        return

    def sensor_names(physics: Any, *types: int) -> list[str]:
        known: dict[Any, list[str]] = physics._sensor_types_to_names
        if types not in known:
            indices = np.flatnonzero(np.isin(physics.model.sensor_type, types))
            known[types] = [physics.model.id2name(index, "sensor") for index in indices]
        return known[types]

    quadruped.Physics._get_sensor_names = sensor_names
