"""Convert recorded actions to policy actions: continuous ones to [-1, 1], discrete ones to one-hot.

The scaling comes from the first of these that exists: the user's bounds or number of choices, the environment named by
the user, the action space stated by the dataset, the numbers themselves. In every case, evaluation maps a packed action
back to the recorded one. If bounds and data disagree, there is a warning.

Dimension letters: T steps of an episode, A action.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium.spaces as gs
import numpy as np

from ..pipeline.errors import DatasetError, TaskError
from .spaces import Space, as_float32, flat_dim
from .validate import ACTION_TOLERANCE

ACTION_BOUNDS = ("action_low", "action_high")
"""Overrides beside the fields of TaskSpec: the native bounds, per component, that are mapped to [-1, 1]."""
CHOICES_START = "choices_start"
"""Override beside the fields of TaskSpec: the number that the data gives to the first choice of a discrete action."""

MANY_CHOICES = 64
"""Whole numbers of more values than this are more often quantities than choices."""
MOST_CHOICES = 10_000
"""Read from the data alone; each takes a column of every row."""


@dataclass(frozen=True)
class ActionScale:
    """The affine map from native actions in [low, high] to [-1, 1], per component."""

    low: np.ndarray
    """[A] float64, native units; the value that becomes -1."""
    high: np.ndarray
    """[A] float64, native units; the value that becomes 1."""
    origin: str
    """Where the bounds come from: `action space`, `environment`, `data`, `environment and data`, or `override`."""

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """[T, A] native -> [T, A] float32. A component whose bounds coincide has nothing to choose and becomes 0."""
        if np.all(self.low == -1) and np.all(self.high == 1):
            return as_float32(actions)
        centre, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        return as_float32((actions - centre) / np.where(half > 0, half, 1.0))

    def environment_bounds(self) -> dict[str, list[float]]:
        """The entries of `TaskSpec.environment` that let evaluation undo a scaling the environment cannot know of."""
        if self.origin == "environment":
            return {}
        return {"action_low": self.low.tolist(), "action_high": self.high.tolist()}

    def describe(self) -> dict[str, Any]:
        """For a dataset's provenance, as JSON."""
        return {"low": self.low.tolist(), "high": self.high.tolist(), "origin": self.origin}


@dataclass(frozen=True)
class Choices:
    """Discrete actions: the whole numbers from `start` on, or rows that are one-hot already."""

    count: int
    start: int
    """The number that the data gives to the first choice."""
    rows: bool = False
    """Whether each action is recorded as a one-hot row."""

    def __call__(self, actions: np.ndarray, where: str) -> np.ndarray:
        """Recorded actions of T steps -> [T, count] float32 one-hot.

        Raises:
            DatasetError: a value is not one of the choices; names the first such index.
        """
        if self.rows:
            return as_float32(actions)
        return one_hot(actions, self.start, self.count, where)

    def describe(self) -> str:
        """For a dataset's provenance."""
        return f"one-hot from {self.start}" if self.start else "one-hot"


@dataclass(frozen=True)
class ActionExtent:
    """What numbers the actions of a dataset are. Values that are not finite do not count; validation reports them."""

    low: np.ndarray
    """[A] float64, native units; 0 if there is no number at all."""
    high: np.ndarray
    integers: bool
    """Whether they are stored as integers or flags."""
    whole: bool
    """Whether every value is a whole number."""
    one_hot: bool
    """Whether every row is zeros and a single one, A > 1."""

    @classmethod
    def of(cls, chunks: Iterable[np.ndarray], width: int) -> ActionExtent:
        """Read all actions, given as [n, A] arrays, once."""
        low, high = np.full(width, np.inf), np.full(width, -np.inf)
        integers, whole, single = True, True, width > 1
        for chunk in chunks:
            finite = np.isfinite(chunk)
            low = np.minimum(low, np.where(finite, chunk, np.inf).min(axis=0, initial=np.inf))
            high = np.maximum(high, np.where(finite, chunk, -np.inf).max(axis=0, initial=-np.inf))
            integers = integers and chunk.dtype.kind in "biu"
            whole = whole and (integers or bool(np.all(~finite | (chunk == np.round(chunk)))))
            single = single and bool(np.all(((chunk == 0) | (chunk == 1)).all(axis=1) & (chunk.sum(axis=1) == 1)))
        empty = low > high
        return cls(np.where(empty, 0.0, low), np.where(empty, 0.0, high), integers, whole, single)

    @property
    def width(self) -> int:
        return len(self.low)


def read_actions(
    extent: ActionExtent, fields: Mapping[str, Any], settings: Mapping[str, Any], space: Space | None, where: str
) -> tuple[ActionScale | Choices, list[str]]:
    """How the actions of a dataset that states no action space become a policy's, and what to warn of.

    Args:
        extent: what its numbers are.
        fields: what the user says of the task; `action_kind` and `action_dim` matter here.
        settings: the user's native bounds and `choices_start`, as `split_overrides` gives them.
        space: of the environment that the user names; None if none is.
        where: the dataset, for messages.

    Raises:
        TaskError: the environment takes other actions than the data holds.
        DatasetError: the settings do not fit the data.
    """
    bounded = all(key in settings for key in ACTION_BOUNDS)
    discrete = extent.integers and extent.width == 1
    if space is not None:
        discrete = isinstance(space, gs.Discrete) and (extent.one_hot or (extent.whole and extent.width == 1))
    if fields.get("action_kind", "continuous" if bounded else "discrete" if discrete else "continuous") == "discrete":
        return _read_choices(extent, fields.get("action_dim"), settings.get(CHOICES_START), space, where)
    if space is not None:
        check_action_space(space, "continuous", extent.width)
    if bounded:
        return scale_from_bounds(settings, extent.width, where, space)
    if space is not None:
        scale, said = scale_in_environment(space, extent)
        if extent.integers and extent.width == 1:
            said.append("actions are integers; treated as continuous, as in the environment")
        return scale, said
    unbounded = np.full(extent.width, np.inf)
    scale = fit_action_scale(-unbounded, unbounded, extent, "data")
    way_out = "set pack.sources.NAME.action_low and action_high if they are continuous"
    if extent.one_hot:
        count = extent.width
        return scale, [f"every action is one-hot with {count} columns; treated as {count} continuous components. Set "
                       f"pack.sources.NAME.choices={count} if it is discrete, or {way_out}"]  # fmt: skip
    if extent.integers:
        return scale, [f"actions are integers in {extent.width} columns; treated as continuous components. Several "
                       "discrete actions per step are not supported: enumerate their combinations, or "
                       f"{way_out}"]  # fmt: skip
    return scale, []


def _read_choices(
    extent: ActionExtent, count: int | None, start: int | None, space: Space | None, where: str
) -> tuple[Choices, list[str]]:
    if space is not None:
        if count is not None and not (isinstance(space, gs.Discrete) and space.n == count):
            raise DatasetError(
                f"{where}: pack.sources.NAME.choices is {count}, but the environment's action space is {space}; remove "
                "choices, or name the environment in which the data was recorded"
            )
        check_action_space(space, "discrete", extent.width if extent.one_hot else None)
        count = int(space.n)  # type: ignore[attr-defined]
    if extent.width > 1:
        if not extent.one_hot or count not in (None, extent.width):
            raise DatasetError(
                f"{where}: actions have {extent.width} columns; expected one integer per step, or one-hot rows of "
                f"{count or extent.width} columns for {count or extent.width} discrete actions. Enumerate the "
                "combinations of several discrete actions per step"
            )
        return Choices(extent.width, 0, rows=True), []
    if not extent.whole:
        raise DatasetError(
            f"{where}: actions lie in {extent.low[0]:g}..{extent.high[0]:g} and are not integers; expected "
            "discrete actions. Remove choices and choices_start"
        )
    lowest, highest = int(extent.low[0]), int(extent.high[0])
    seen = f"{where}: discrete actions are numbered {lowest}..{highest}"
    quantities = "set pack.sources.NAME.action_low and action_high if they are continuous"
    said = []
    if start is None and space is not None:
        start = int(space.start)  # type: ignore[attr-defined]
    elif start is None and count == highest - lowest + 1:
        start = lowest  # as many numbers as choices: one way to count them
    elif start is None:
        start = 0
        if count is None and lowest < 0:
            raise DatasetError(
                f"{seen}, expected 0 and above; set pack.sources.NAME.choices_start={lowest} for "
                f"{highest - lowest + 1} actions, or {quantities}"
            )
        if count is None and lowest > 0 and highest < MANY_CHOICES:
            said.append(
                f"discrete actions are numbered {lowest}..{highest}; treated as 0..{highest}, the first of which never "
                f"occurs. Set pack.sources.NAME.choices_start={lowest} if {lowest} is the first"
            )
    if count is None:
        count = max(highest - start + 1, 1)
        if count > MOST_CHOICES:
            raise DatasetError(
                f"{seen}, too many discrete actions; {quantities}, or set pack.sources.NAME.choices_start"
            )
        if count > MANY_CHOICES:
            said.append(f"actions are integers, treated as {count} discrete actions; {quantities}")
    if lowest < start or highest >= start + count:
        counted = "" if space is None else f" ({space} of the environment)"
        if lowest < start or highest - lowest < count:
            way_out = (
                f"set pack.sources.NAME.choices_start={lowest} if {lowest} is the first action, or correct the data"
            )
        elif space is None:
            way_out = f"set pack.sources.NAME.choices={highest - start + 1}, or correct the data"
        else:
            way_out = "name the environment in which the data was recorded, or correct the data"
        raise DatasetError(f"{seen}, expected {start}..{start + count - 1}{counted}; {way_out}")
    return Choices(count, start), said


def check_action_space(space: Space, kind: str, width: int | None) -> None:
    """Raise a TaskError unless an environment's action space takes actions of that kind and width (None: any)."""
    wanted: type[Space] = gs.Discrete if kind == "discrete" else gs.Box
    if not isinstance(space, wanted) or (width is not None and flat_dim(space) != width):
        held = "a discrete action" if kind == "discrete" else "continuous actions"
        size = (
            ""
            if width is None
            else f" out of {width}"
            if kind == "discrete"
            else f" of {width} component{'s' * (width > 1)}"
        )
        raise TaskError(f"its action space is {space}, but the data has {held}{size}")


def scale_in_environment(space: Space, extent: ActionExtent) -> tuple[ActionScale, list[str]]:
    """The scale of continuous actions that were recorded in an environment, and what to warn of.

    The environment's bounds decide. Recorded actions beyond them widen the scale, so that evaluation applies them as
    they are.

    Raises:
        TaskError: the environment takes other actions.
    """
    check_action_space(space, "continuous", extent.width)
    scale = fit_action_scale(*action_bounds(space), extent, "environment")
    slack = ACTION_TOLERANCE * np.maximum((scale.high - scale.low) / 2, 1e-6)
    beyond = (extent.low < scale.low - slack) | (extent.high > scale.high + slack)
    found = f"actions lie in {_listed(extent.low)}..{_listed(extent.high)}"
    stated = f"the environment's bounds are {_listed(scale.low)}..{_listed(scale.high)}"
    if beyond.any():
        low = np.where(beyond, np.minimum(scale.low, extent.low), scale.low)
        high = np.where(beyond, np.maximum(scale.high, extent.high), scale.high)
        return ActionScale(low, high, "environment and data"), [
            f"{found}, {stated}: evaluation applies them as recorded. Correct the data or, if they were "
            "normalised, name an environment with these bounds"
        ]
    normalised = np.isclose(np.maximum(-extent.low, extent.high), 1, rtol=0, atol=ACTION_TOLERANCE).all()
    if normalised and scale.origin == "environment" and (np.abs([scale.low, scale.high]) > 1 + ACTION_TOLERANCE).all():
        return scale, [
            f"{found}, as if normalised; {stated}. They are treated as the environment's units: multiply them by "
            "its bounds if they were normalised"
        ]
    return scale, []


def action_bounds(space: Space) -> tuple[np.ndarray, np.ndarray]:
    """Low and high [A] float64 of a Box."""
    low, high = (np.asarray(part, np.float64).reshape(-1) for part in (space.low, space.high))  # type: ignore
    return low, high


def _listed(values: np.ndarray) -> str:
    """At most four numbers of [A], as in messages."""
    shown = ", ".join(f"{value:g}" for value in values[:4])
    return f"[{shown}{', ...' if len(values) > 4 else ''}]"


def fit_action_scale(low: np.ndarray, high: np.ndarray, extent: ActionExtent, origin: str) -> ActionScale:
    """The scale for bounds that may be infinite.

    A component without two finite bounds keeps its values if all lie within [-1, 1], else it is divided by the largest
    magnitude in the data.

    Args:
        low, high: [A], native bounds; infinite if there are none.
        extent: of the dataset's actions.
        origin: where the bounds come from.
    """
    unbounded = ~(np.isfinite(low) & np.isfinite(high))
    largest = np.maximum(1.0, np.maximum(np.abs(extent.low), np.abs(extent.high)))
    origin = "data" if unbounded.any() else origin
    return ActionScale(np.where(unbounded, -largest, low), np.where(unbounded, largest, high), origin)


def scale_from_bounds(
    bounds: Mapping[str, Any], action_dim: int, where: str, space: Space | None = None
) -> tuple[ActionScale, list[str]]:
    """The scale that a user's `action_low` and `action_high` (a number, or one per component) describe.

    With the action space of the environment that the user names, also what to warn of where it has other bounds.

    Raises:
        DatasetError: they do not fit `action_dim`, or a low bound is not below its high bound.
    """
    try:
        low, high = (np.broadcast_to(np.asarray(bounds[key], np.float64), action_dim).copy() for key in ACTION_BOUNDS)
    except ValueError as error:
        raise DatasetError(
            f"{where}: action_low and action_high must be a number or {action_dim} numbers, one per component; "
            f"{_given(bounds)}"
        ) from error
    if not (np.isfinite(low) & np.isfinite(high) & (low < high)).all():
        raise DatasetError(f"{where}: every action_low must be finite and below its action_high; {_given(bounds)}")
    said = []
    if space is not None and not all(map(np.allclose, (low, high), action_bounds(space))):
        stated = "..".join(map(_listed, action_bounds(space)))
        said.append(
            f"action_low and action_high are {_listed(low)}..{_listed(high)}, the environment's bounds {stated}: the "
            "settings take precedence; where they are wider, actions may exceed the environment's bounds"
        )
    return ActionScale(low, high, "override"), said


def _given(bounds: Mapping[str, Any]) -> str:
    return "found " + ", ".join(f"{key} {bounds[key]}" for key in ACTION_BOUNDS)


def one_hot(choices: np.ndarray, start: int, num_choices: int, where: str) -> np.ndarray:
    """Discrete actions [T] (or [T, 1]) from `start` on -> [T, num_choices] float32.

    Raises:
        DatasetError: a value is not one of the choices; names the first such index.
    """
    index = choices.reshape(-1).astype(np.int64) - start
    if (wrong := np.flatnonzero((index < 0) | (index >= num_choices))).size:
        raise DatasetError(
            f"{where}: action at t = {wrong[0]} is {choices.reshape(-1)[wrong[0]]}, expected one of {start}.."
            f"{start + num_choices - 1}; correct the data or the number of choices"
        )
    return np.eye(num_choices, dtype=np.float32)[index]
