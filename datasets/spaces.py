"""How an observation of any gymnasium space becomes one flat float32 vector.

Decides the order: that of the space itself (a Dict's keys as the space lists them, a Tuple's parts in sequence, a Box
in C order), so data read from disk and observations of a live environment agree whenever their spaces do. Where data
comes in named parts instead, `order_parts` brings them into the order of an environment's space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import gymnasium.spaces as gs
import numpy as np

from ..pipeline.errors import TaskError

Space = gs.Space[Any]


def _children(space: gs.Dict | gs.Tuple) -> list[tuple[Any, Space]]:
    return list(space.spaces.items()) if isinstance(space, gs.Dict) else list(enumerate(space.spaces))


def as_float32(values: np.ndarray) -> np.ndarray:
    """Numbers beyond float32 become infinite, which validation reports."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


Part = tuple[str, int]
"""A named part of an observation, such as `goal/position`, and how many numbers it has."""


def flat_parts(space: Space, name: str = "") -> list[Part]:
    """The leaves of a space with their widths, in the order in which they are flattened.

    Raises:
        TaskError: a leaf is something other than Box, Discrete, MultiBinary and MultiDiscrete; names it.
    """
    if isinstance(space, gs.Dict | gs.Tuple):
        return [
            part for key, child in _children(space) for part in flat_parts(child, f"{name}/{key}" if name else str(key))
        ]
    if isinstance(space, gs.Box | gs.MultiBinary):
        return [(name, int(np.prod(space.shape)))]
    if isinstance(space, gs.Discrete):
        return [(name, int(space.n))]
    if isinstance(space, gs.MultiDiscrete):
        return [(name, int(space.nvec.sum()))]
    raise _refuse(space, _dotted(name))


def _refuse(space: Space, name: str) -> TaskError:
    return TaskError(
        f"cannot flatten {name} of space {space}: expected Box, Discrete, MultiBinary, MultiDiscrete, or a Dict or "
        "Tuple of these; wrap the environment or convert the dataset so that it has one of them"
    )


def _dotted(name: str) -> str:
    return ".".join(["observation", *name.split("/")]) if name else "observation"


def flat_dim(space: Space) -> int:
    """Width O of a flattened observation of `space`.

    Raises:
        TaskError: the space cannot be flattened.
    """
    return sum(width for _, width in flat_parts(space))


def flat_columns(space: Space) -> list[str]:
    """A name for each of the O columns, in order, such as `observation.goal[1]`; for error messages and provenance."""
    return [f"{_dotted(name)}[{index}]" for name, width in flat_parts(space) for index in range(width)]


def looks_like_images(shape: Sequence[int], dtype: Any) -> bool:
    """Whether single observations of this shape are images: three axes or more, or two of bytes."""
    return len(shape) >= 3 or (len(shape) == 2 and np.dtype(dtype) == np.uint8)


def order_parts(data: Sequence[Part], environment: Sequence[Part]) -> tuple[list[int], list[str]]:
    """Positions of the data's parts in the order of an environment's observation, and what to warn of.

    A part of the data belongs to the environment's part whose path its own ends with: `obs/goal` to `goal`. Parts
    without names in common stay in their order, if their borders agree.

    Raises:
        TaskError: the widths differ, or neither names nor borders tell which part is which.
    """
    kept = list(range(len(data)))
    described = f"it has observations of {_described(environment)}, but the data has {_described(data)}"
    if sum(width for _, width in data) != sum(width for _, width in environment):
        raise TaskError(described)
    if min(len(data), len(environment)) == 1:
        return kept, []
    found = [[i for i in kept if _ends_with(data[i][0], name)] for name, _ in environment]
    order = [matches[0] for matches in found if len(matches) == 1]
    if len(order) == len(environment) and sorted(order) == kept:
        if any(data[i][1] != width for i, (_, width) in zip(order, environment, strict=True)):
            raise TaskError(described)
        said = (
            f"observation columns {_described(data)} are reordered to match the environment: {_described(environment)}"
        )
        return order, [] if order == kept else [said]
    ours, theirs = (set(accumulate(width for _, width in parts)) for parts in (data, environment))
    if not (ours <= theirs or theirs <= ours):
        raise TaskError(f"{described}, in this order; list the columns in the environment's order")
    return kept, [
        f"observation columns {_described(data)} are used in this order as the environment's {_described(environment)}"
    ]


def _ends_with(path: str, name: str) -> bool:
    wanted = name.split("/")
    return path.split("/")[-len(wanted) :] == wanted


def _described(parts: Sequence[Part]) -> str:
    total = sum(width for _, width in parts)
    numbers = "1 number" if total == 1 else f"{total} numbers"
    if len(parts) == 1:
        return numbers
    return f"{numbers} ({', '.join(f'{name} {width}' for name, width in parts)})"


def flatten_observation(space: Space, observation: Any) -> np.ndarray:
    """The observation as a float32 vector [..., O].

    Leading axes that all leaves share are kept, so a whole episode ([T + 1, ...] leaves, as Minari has them) flattens
    in one call. Discrete and MultiDiscrete values become one-hot, MultiBinary ones 0 and 1. Values beyond float32
    become infinite, which later checks report.

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
    if isinstance(space, gs.Box | gs.MultiBinary):
        lead = values.ndim - len(space.shape)
        if lead < 0 or values.shape[lead:] != space.shape:
            raise TaskError(f"observation has shape {values.shape}, expected {space.shape} as in {space}")
        if values.dtype.kind not in "biuf":
            raise TaskError(f"observation holds {values.dtype}, expected numbers as in {space}")
        return as_float32(values.reshape((*values.shape[:lead], math.prod(space.shape))))
    if isinstance(space, gs.Discrete):
        choice = values.astype(np.int64) - int(space.start)
        if choice.size and (choice.min() < 0 or choice.max() >= space.n):
            raise TaskError(f"observation {values.min()}..{values.max()} is outside {space}")
        return np.eye(int(space.n), dtype=np.float32)[choice]
    if isinstance(space, gs.MultiDiscrete):
        sizes, starts = space.nvec.reshape(-1), space.start.reshape(-1)
        lead = values.ndim - len(space.shape)
        if lead < 0 or values.shape[lead:] != space.shape:
            raise TaskError(f"observation has shape {values.shape}, expected {space.shape} as in {space}")
        columns = values.reshape((*values.shape[:lead], len(sizes)))
        return np.concatenate(
            [
                flatten_observation(gs.Discrete(int(size), start=int(start)), columns[..., index])
                for index, (size, start) in enumerate(zip(sizes, starts, strict=True))
            ],
            axis=-1,
        )
    raise _refuse(space, "observation")
