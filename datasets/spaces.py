"""How an observation of any gymnasium space becomes one flat float32 vector.

Decides the order: that of the space itself (a Dict's keys as the space lists them, a Tuple's parts in sequence, a Box
in C order), so data read from disk and observations of a live environment agree whenever their spaces do.
"""

from __future__ import annotations

from typing import Any

import gymnasium.spaces as gs
import numpy as np

from ..pipeline.errors import TaskError

Space = gs.Space[Any]


def _children(space: gs.Dict | gs.Tuple) -> list[tuple[Any, Space]]:
    return list(space.spaces.items()) if isinstance(space, gs.Dict) else list(enumerate(space.spaces))


def _refuse(space: Space) -> TaskError:
    return TaskError(
        f"cannot flatten observations of space {space}: expected Box, Discrete, or a Dict or Tuple of these; "
        "wrap the environment or convert the dataset so that it has one of them"
    )


def flat_dim(space: Space) -> int:
    """Width O of a flattened observation of `space`.

    Raises:
        TaskError: the space is, or contains, something other than Box, Discrete, Dict and Tuple.
    """
    if isinstance(space, gs.Box):
        return int(np.prod(space.shape))
    if isinstance(space, gs.Discrete):
        return int(space.n)
    if isinstance(space, gs.Dict | gs.Tuple):
        return sum(flat_dim(child) for _, child in _children(space))
    raise _refuse(space)


def flat_columns(space: Space, prefix: str = "observation") -> list[str]:
    """A name for each of the O columns, in order, such as `observation.goal[1]`; for error messages and provenance."""
    if isinstance(space, gs.Dict | gs.Tuple):
        return [name for key, child in _children(space) for name in flat_columns(child, f"{prefix}.{key}")]
    return [f"{prefix}[{index}]" for index in range(flat_dim(space))]


def flatten_observation(space: Space, observation: Any) -> np.ndarray:
    """The observation as a float32 vector [..., O].

    Leading axes that all leaves share are kept, so a whole episode ([T + 1, ...] leaves, as Minari has them) flattens
    in one call. Discrete values become one-hot. Values beyond float32 become infinite, which later checks report.

    Args:
        space: describes a single observation.
        observation: a member of `space`, or a stack of them with the same leading axes on every leaf.

    Raises:
        TaskError: the space cannot be flattened, or a leaf's shape or value is not one of the space's.
    """
    if isinstance(space, gs.Dict | gs.Tuple):
        parts = [flatten_observation(child, observation[key]) for key, child in _children(space)]
        return np.concatenate(parts, axis=-1) if parts else np.zeros(0, np.float32)
    values = np.asarray(observation)
    if isinstance(space, gs.Box):
        lead = values.ndim - len(space.shape)
        if lead < 0 or values.shape[lead:] != space.shape:
            raise TaskError(f"observation has shape {values.shape}, expected {space.shape} as {space} says")
        with np.errstate(over="ignore"):
            return values.reshape((*values.shape[:lead], flat_dim(space))).astype(np.float32)
    if isinstance(space, gs.Discrete):
        choice = values.astype(np.int64) - int(space.start)
        if choice.size and (choice.min() < 0 or choice.max() >= space.n):
            raise TaskError(f"observation {values.min()}..{values.max()} is outside {space}")
        return np.eye(int(space.n), dtype=np.float32)[choice]
    raise _refuse(space)
