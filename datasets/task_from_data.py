"""Task fields that follow from a dataset without a task file, or that a user may set.

Shared by the Minari and HDF5 readers; does not read files.

Dimension letters: T steps of an episode.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..pipeline.errors import DatasetError
from .actions import ACTION_BOUNDS, CHOICES_START
from .schema import TaskSpec


def limit_warnings(environment: Mapping[str, Any], fields: Mapping[str, Any], longest: int) -> list[str]:
    """What to warn of where episodes are longer than the environment's limit.

    Args:
        environment: fields of TaskSpec that follow from the environment.
        fields: those that the user gives.
        longest: episode of the data, in steps.
    """
    limit = environment.get("episode_length")
    if limit is None:
        return []
    repeat = environment.get("action_repeat", 1)
    stated = f"the environment ends an episode after {limit} steps" + (
        f" of {repeat} simulator steps each" if repeat > 1 else ""
    )
    if fields.get("episode_length", 0) > limit:
        return [f"episode_length is {fields['episode_length']}, but {stated}; evaluation ends episodes there"]
    if longest > limit and "episode_length" not in fields:
        return [f"the longest episode of the data has {longest} steps, but {stated}"]
    return []


def split_overrides(overrides: Mapping[str, Any] | None, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The overrides as (fields of TaskSpec, settings of the actions: native bounds and `choices_start`).

    Raises:
        DatasetError: a key is neither, or only one of the two bounds is given.
    """
    values = dict(overrides or {})
    settings = {key: values.pop(key) for key in (*ACTION_BOUNDS, CHOICES_START) if key in values}
    fields = [f.name for f in dataclasses.fields(TaskSpec)]
    if unknown := sorted(set(values) - set(fields)):
        raise DatasetError(
            f"{where}: unknown task settings {unknown}; known settings: "
            f"{', '.join([*fields, *ACTION_BOUNDS, CHOICES_START])}"
        )
    if len(given := settings.keys() & set(ACTION_BOUNDS)) == 1:
        raise DatasetError(f"{where}: action_low and action_high must be set together; found only {min(given)}")
    return values, settings


def success_flags(values: Any, num_steps: int, where: str) -> np.ndarray:
    """Success after each action, [T] bool, from T values, or from T + 1 whose first belongs to the reset.

    Raises:
        DatasetError: there are neither T nor T + 1 values.
    """
    flags = np.asarray(values).reshape(-1)
    if len(flags) not in (num_steps, num_steps + 1):
        raise DatasetError(
            f"{where}: success has {len(flags)} values, expected {num_steps} (one per action) or "
            f"{num_steps + 1} (with the reset's); correct or remove it"
        )
    return flags[len(flags) - num_steps :] > 0
