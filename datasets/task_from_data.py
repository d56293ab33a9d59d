"""What a dataset without a task file says about its task, and how its actions are brought to [-1, 1].

Shared by the Minari and HDF5 readers. Decides the defaults of a TaskSpec made from data, and which of its fields a user
may set; does not read files.

Dimension letters: T decisions of an episode, A action.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..pipeline.errors import DatasetError
from .schema import TaskSpec

ACTION_BOUNDS = ("action_low", "action_high")
"""Overrides beside the fields of TaskSpec: the native bounds, per component, that are mapped to [-1, 1]."""


def as_float32(values: np.ndarray) -> np.ndarray:
    """Numbers beyond float32 become infinite, which validation reports."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


@dataclass(frozen=True)
class ActionScale:
    """The affine map from native actions in [low, high] to [-1, 1], per component."""

    low: np.ndarray
    """[A] float64, native units; the value that becomes -1."""
    high: np.ndarray
    """[A] float64, native units; the value that becomes 1."""
    origin: str
    """Where the bounds come from: `action space`, `data` or `override`."""

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """[T, A] native -> [T, A] float32. A component whose bounds coincide has nothing to choose and becomes 0."""
        if self.is_identity:
            return as_float32(actions)
        centre, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        return as_float32((actions - centre) / np.where(half > 0, half, 1.0))

    @property
    def is_identity(self) -> bool:
        return bool(np.all(self.low == -1) and np.all(self.high == 1))

    def environment_bounds(self) -> dict[str, list[float]]:
        """The entries of `TaskSpec.environment` that let evaluation undo a scaling the environment cannot know of."""
        if self.origin == "action space" or self.is_identity:
            return {}
        return {"action_low": self.low.tolist(), "action_high": self.high.tolist()}

    def to_dict(self) -> dict[str, Any]:
        return {"low": self.low.tolist(), "high": self.high.tolist(), "origin": self.origin}


def fit_action_scale(low: np.ndarray, high: np.ndarray, chunks: Iterable[np.ndarray]) -> ActionScale:
    """The scale for bounds that may be infinite.

    A component without two finite bounds keeps its values if all lie within [-1, 1], else it is divided by the largest
    magnitude in the data. `chunks` is read only if there is such a component.

    Args:
        low, high: [A], native bounds; infinite where there are none.
        chunks: the dataset's actions as [n, A] arrays. Values that are not finite are left to validation.
    """
    unbounded = ~(np.isfinite(low) & np.isfinite(high))
    if not unbounded.any():
        return ActionScale(low.astype(np.float64), high.astype(np.float64), "action space")
    largest = np.ones(len(low))
    for chunk in chunks:
        largest = np.fmax(largest, np.where(np.isfinite(chunk), np.abs(chunk), 0.0).max(axis=0, initial=0.0))
    return ActionScale(np.where(unbounded, -largest, low), np.where(unbounded, largest, high), "data")


def split_overrides(overrides: Mapping[str, Any] | None, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The overrides as (fields of TaskSpec, native action bounds).

    Raises:
        DatasetError: a key is neither, or only one of the two bounds is given.
    """
    values = dict(overrides or {})
    bounds = {key: values.pop(key) for key in ACTION_BOUNDS if key in values}
    fields = [f.name for f in dataclasses.fields(TaskSpec)]
    if unknown := sorted(set(values) - set(fields)):
        raise DatasetError(
            f"{where}: unknown task settings {unknown}; those that can be given are "
            f"{', '.join([*fields, *ACTION_BOUNDS])}"
        )
    if len(bounds) == 1:
        raise DatasetError(f"{where}: action_low and action_high are given together; found only {next(iter(bounds))}")
    return values, bounds


def scale_from_bounds(bounds: Mapping[str, Any], action_dim: int, where: str) -> ActionScale:
    """The scale that a user's `action_low` and `action_high` (a number, or one per component) describe.

    Raises:
        DatasetError: they do not fit `action_dim`, or a low bound is not below its high bound.
    """
    try:
        low, high = (np.broadcast_to(np.asarray(bounds[key], np.float64), action_dim).copy() for key in ACTION_BOUNDS)
    except ValueError as error:
        raise DatasetError(
            f"{where}: action_low and action_high must be a number or {action_dim} numbers, one per component; "
            f"found {bounds}"
        ) from error
    if not (np.isfinite(low) & np.isfinite(high) & (low < high)).all():
        raise DatasetError(f"{where}: every action_low must be finite and below its action_high; found {bounds}")
    return ActionScale(low, high, "override")


def one_hot(choices: np.ndarray, start: int, num_choices: int, where: str) -> np.ndarray:
    """Discrete actions [T] (or [T, 1]) from `start` on -> [T, num_choices] float32.

    Raises:
        DatasetError: a value is not one of the choices; names the first such index.
    """
    index = choices.reshape(-1).astype(np.int64) - start
    if (wrong := np.flatnonzero((index < 0) | (index >= num_choices))).size:
        raise DatasetError(
            f"{where}: action at t = {wrong[0]} is {choices.reshape(-1)[wrong[0]]}, expected one of {start}.."
            f"{start + num_choices - 1}; correct the data or give the right action_dim"
        )
    return np.eye(num_choices, dtype=np.float32)[index]


def success_flags(values: Any, num_decisions: int, where: str) -> np.ndarray:
    """Success after each action, [T] bool, from T values, or from T + 1 whose first belongs to the reset.

    Raises:
        DatasetError: there are neither T nor T + 1 values.
    """
    flags = np.asarray(values).reshape(-1)
    if len(flags) not in (num_decisions, num_decisions + 1):
        raise DatasetError(
            f"{where}: success has {len(flags)} values, expected {num_decisions} (one per action) or "
            f"{num_decisions + 1} (with the reset's); correct or remove it"
        )
    return flags[len(flags) - num_decisions :] > 0
