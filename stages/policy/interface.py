"""Shapes, types and units of the observations and actions that an environment exchanges with a policy, and the
conversions.

Inside the project, observations are flat float32 vectors and actions are in [-1, 1] (or one-hot); an exported policy
uses the environment's own observations and actions.

Dimension letters: B batch, O flat observation, A action components.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from ...datasets.schema import TaskSpec
from ...datasets.spaces import flat_columns, flatten_observation
from ...datasets.tasks import make_environment
from ...datasets.tasks.task_env import TaskEnv, action_scale
from ...pipeline.errors import TaskError


@dataclass(frozen=True)
class Interface:
    """The environment's side of a policy."""

    spec: TaskSpec
    environment: TaskEnv | None
    """None if the data does not say how to build it; observations are then flat, and actions within the data's bounds
    or in [-1, 1]."""

    @classmethod
    def of(cls, spec: TaskSpec) -> Interface:
        """Build the environment. Raises TaskError if it cannot be built."""
        return cls(spec, make_environment(spec) if spec.environment.get("kind") else None)

    @property
    def index_start(self) -> int | None:
        """The smallest observation, if observations are state numbers; else None."""
        space = self._space
        return int(space.start) if isinstance(space, spaces.Discrete) else None

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of one observation: of the array, () for a state number, (O,) for several parts."""
        space = self._space
        if isinstance(space, spaces.Discrete):
            return ()
        return space.shape if isinstance(space, spaces.Box) else (self.spec.observation_dim,)

    @property
    def observation_dtype(self) -> np.dtype[Any]:
        """int64 for a state number, uint8 for images, else float32."""
        space = self._space
        if isinstance(space, spaces.Discrete):
            return np.dtype(np.int64)
        return np.dtype(np.uint8 if isinstance(space, spaces.Box) and space.dtype == np.uint8 else np.float32)

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of one action; () if it is discrete."""
        if self.spec.action_kind == "discrete":
            return ()
        return self.environment.native.action_space.shape or () if self.environment else (self.spec.action_dim,)

    @property
    def action_start(self) -> int:
        """The number of the first discrete action."""
        space = self.environment.native.action_space if self.environment else None
        return int(space.start) if isinstance(space, spaces.Discrete) else 0

    @property
    def action_scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Middle and half width of each action component's range, [A] float64, environment units."""
        bounds = np.ones(self.spec.action_dim)
        low, high = -bounds, bounds
        if self.environment is not None and isinstance(space := self.environment.native.action_space, spaces.Box):
            low, high = space.low, space.high
        return action_scale(low, high, self.spec)

    def flat(self, observation: Any) -> tuple[np.ndarray, bool]:
        """One or many observations as the environment gives them, as float32 [B, O]; and whether they were many.

        Args:
            observation: a member of the environment's observation space, or a batch of them along a first axis (of
                every part, where the space is a Dict or Tuple); arrays, tensors or lists. Where such a space is in
                parts, or the environment is not known, also flat: [O] or [B, O].
        Raises:
            TaskError: another shape, or no numbers.
        """
        space, observation = self._space, _on_cpu(observation)
        in_parts = isinstance(space, spaces.Dict | spaces.Tuple) and isinstance(observation, np.ndarray)
        if space is None or in_parts:
            space = spaces.Box(-np.inf, np.inf, (self.spec.observation_dim,))
        expected = f"task {self.spec.name!r}: expected one observation {space}, or a batch of them"
        try:
            flat = flatten_observation(space, observation)
        except (TaskError, TypeError, ValueError, KeyError, IndexError) as error:
            raise TaskError(f"{expected}, found {_described(observation)}") from error
        if flat.ndim > 2 or not len(flat):
            raise TaskError(f"{expected} along one axis, found {_described(observation)}")
        if not np.isfinite(flat).all():
            raise TaskError(f"task {self.spec.name!r}: the observation holds NaN or infinity")
        return flat.reshape(-1, self.spec.observation_dim), flat.ndim == 2

    def raw(self, flat_BO: np.ndarray) -> np.ndarray:
        """Convert flat observations [B, O] to the form of the environment."""
        if self.index_start is not None:
            return flat_BO.argmax(1) + self.index_start
        return flat_BO.reshape((-1, *self.observation_shape)).astype(self.observation_dtype)

    def to_environment(self, action_BA: np.ndarray) -> np.ndarray:
        """Convert a policy's actions [B, A] to those of the environment, [B, *action_shape]."""
        if self.environment is not None:
            return np.stack([self.environment.to_native_action(action) for action in action_BA])
        if self.spec.action_kind == "discrete":
            return action_BA.argmax(1)
        middle, half = self.action_scale
        return middle + half * np.clip(action_BA, -1, 1)

    def describe(self) -> dict[str, Any]:
        """Return all of it for users of an exported policy; JSON-serialisable."""
        observation: dict[str, Any] = {
            "name": "observation",
            "dtype": str(self.observation_dtype),
            "shape": ["batch", *self.observation_shape],
        }
        space = self._space
        if self.index_start is not None:
            observation["values"] = [self.index_start, self.index_start + self.spec.observation_dim - 1]
        elif isinstance(space, spaces.Dict | spaces.Tuple):
            observation["columns"] = flat_columns(space)
        action: dict[str, Any] = {"name": "action", "shape": ["batch", *self.action_shape]}
        if self.spec.action_kind == "discrete":
            last = self.action_start + self.spec.action_dim - 1
            action |= {"dtype": "int64", "values": [self.action_start, last]}
        else:
            middle, half = self.action_scale
            known = self.environment is not None or "action_low" in self.spec.environment
            units = "environment" if known else "scaled to [-1, 1], because the environment is not known"
            action |= {
                "dtype": "float32",
                "units": units,
                "low": (middle - half).tolist(),
                "high": (middle + half).tolist(),
            }
        return {"observation": observation, "action": action}

    @property
    def _space(self) -> spaces.Space[Any] | None:
        return self.environment.native.observation_space if self.environment else None


def _on_cpu(observation: Any) -> Any:
    """The same with tensors, also of a GPU or with gradients, as arrays."""
    if isinstance(observation, Mapping):
        return {name: _on_cpu(part) for name, part in observation.items()}
    if isinstance(observation, tuple):
        return tuple(_on_cpu(part) for part in observation)
    if not isinstance(observation, torch.Tensor):
        return observation
    tensor = observation.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # NumPy has no bfloat16


def _described(observation: Any) -> str:
    if isinstance(observation, Mapping):
        return "{" + ", ".join(f"{name}: {_described(part)}" for name, part in observation.items()) + "}"
    shape, dtype = getattr(observation, "shape", None), getattr(observation, "dtype", None)
    return f"{observation!r:.80}" if shape is None else f"{type(observation).__name__} {tuple(shape)} of {dtype}"
