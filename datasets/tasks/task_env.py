"""The common interface of all environments.

Observations are flat float32 [O] in the environment's own units. Actions are float32 [A] in [-1, 1]: continuous ones
are scaled to the native bounds here, discrete ones are chosen by argmax. Action repeat, reward summing and the time
limit are handled here: outside this file, a step includes the action repeat.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from ...pipeline.errors import TaskError
from ..schema import TaskSpec
from ..spaces import flat_dim, flatten_observation


class NativeEnv(gymnasium.Env[Any, Any]):
    """A task in the units of its own simulator: its observations, its actions, steps of `spec.action_repeat` simulator
    steps, and truncation after `spec.episode_length` of them.

    `reset(seed=s)` fixes the whole episode given the actions, whatever was played before. With `spec.reports_success`,
    `info["success"]` is a bool after every step: the state that the step led to counts, as in TD-MPC2.
    """

    def __init__(self, native: gymnasium.Env[Any, Any], spec: TaskSpec) -> None:
        self.task = spec
        self.native = native
        self.observation_space, self.action_space = native.observation_space, native.action_space
        self.metadata, self.render_mode = native.metadata, native.render_mode
        self._step: int | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        observation, info = self.native.reset(seed=seed, options=options)
        self._step = 0
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._step is None:
            raise gymnasium.error.ResetNeeded(f"task {self.task.name!r}: the episode is over; call reset() first")
        reward = 0.0
        for _ in range(self.task.action_repeat):
            observation, step_reward, terminated, truncated, info = self.native.step(action)
            reward += float(step_reward)
            if terminated or truncated:
                break
        self._step += 1
        truncated = bool(truncated) or (not terminated and self._step >= self.task.episode_length)
        if terminated or truncated:
            self._step = None
        if self.task.reports_success:
            info = {**info, "success": bool(info.get("success", False))}
        return observation, reward, bool(terminated), truncated, info

    def render(self) -> Any:
        return self.native.render()

    def close(self) -> None:
        self.native.close()


class TaskEnv(NativeEnv):
    """A suite's environment with action repeat and time limit.

    One step is `spec.action_repeat` simulator steps; an episode ends after `spec.episode_length` steps. Given the
    actions, `reset(seed=s)` alone determines the episode. With `spec.reports_success`, `info["success"]` is a bool
    after every step, for the state that the step led to, as in TD-MPC2.

    Raises:
        TaskError: the native spaces are not supported, or differ in size from `spec`.
    """

    def __init__(self, native: gymnasium.Env[Any, Any], spec: TaskSpec) -> None:
        super().__init__(native, spec)
        self.to_native_action = _action_map(native.action_space, spec)
        """An action [A] in [-1, 1] as a member of the native action space."""
        found = flat_dim(native.observation_space)
        if found != spec.observation_dim:
            raise TaskError(
                f"task {spec.name!r}: its environment has {found} observation columns, expected {spec.observation_dim} "
                f"as in its data; environment: {dict(spec.environment)}"
            )
        self.observation_space = spaces.Box(-np.inf, np.inf, (spec.observation_dim,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        return flatten_observation(self.native.observation_space, observation), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        native_action = self.to_native_action(np.asarray(action, np.float32))
        observation, reward, terminated, truncated, info = super().step(native_action)
        return flatten_observation(self.native.observation_space, observation), reward, terminated, truncated, info


def _action_map(space: spaces.Space[Any], spec: TaskSpec) -> Any:
    """Return the function that maps an action [A] in [-1, 1] to the native `space`."""
    if isinstance(space, spaces.Discrete) and spec.action_kind == "discrete":
        _check_width(int(space.n), spec)
        start = int(space.start)
        return lambda action: start + int(np.argmax(action))
    if not (isinstance(space, spaces.Box) and spec.action_kind == "continuous"):
        raise TaskError(f"task {spec.name!r}: its environment takes {space}, expected {spec.action_kind} actions")
    _check_width(flat_dim(space), spec)
    middle, half = (part.reshape(space.shape) for part in action_scale(space.low, space.high, spec))
    shape, dtype = space.shape, space.dtype
    return lambda action: (middle + half * action.clip(-1, 1).reshape(shape)).astype(dtype)


def action_scale(low: np.ndarray, high: np.ndarray, spec: TaskSpec) -> tuple[np.ndarray, np.ndarray]:
    """Return middle and half width of each component's range, [A] float64: native = middle + half * action.

    Components without bounds keep their values. Bounds recorded with a dataset (`action_low`, `action_high`) replace
    those of the space.
    """
    low = np.asarray(spec.environment.get("action_low", low), np.float64).reshape(-1)
    high = np.asarray(spec.environment.get("action_high", high), np.float64).reshape(-1)
    bounded = np.isfinite(low) & np.isfinite(high)
    with np.errstate(invalid="ignore"):  # inf - inf of an unbounded component, replaced by the identity
        return np.where(bounded, (low + high) / 2, 0.0), np.where(bounded, (high - low) / 2, 1.0)


def _check_width(found: int, spec: TaskSpec) -> None:
    if found != spec.action_dim:
        raise TaskError(
            f"task {spec.name!r}: its environment has {found} action components or discrete actions, expected "
            f"{spec.action_dim}"
        )
