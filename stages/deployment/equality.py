"""Whether an exported policy acts as the policy does, on observations that it will meet and on others.

What it is compared with is the policy as evaluation uses it: its `act` on flat observations, then the environment's own
map to its actions.

Dimension letters: B batch, O flat observation, A action components.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...datasets.rollout import play_episodes, policy_act
from ...datasets.schema import TaskSpec
from ...datasets.spaces import flatten_observation
from ...datasets.store import TaskStore
from ...pipeline.errors import DatasetError, ExportError
from ...pipeline.seeding import derive_seed
from ..policy.interface import Interface
from ..policy.policy import Policy
from ..policy.programs import Program

TOLERANCE = 1e-4
"""Largest difference of an action component allowed, in halves of its range. Float rounding makes 1e-6 to 1e-5."""

ROWS = 1000
"""Observations of each kind."""

ROWS_ALONE = 16
"""Of which these are also given one at a time."""


@dataclass(frozen=True)
class Observations:
    """What an exported policy is tried on."""

    kind: str
    """In words."""
    flat_BO: np.ndarray


def recorded(policy: Policy, spec: TaskSpec, store: Path | None) -> Observations | None:
    """Observations of the task: from its data, or of an episode with the policy. None if neither is there.

    Raises:
        DatasetError: the store does not hold the task.
        ExportError: the episode failed.
    """
    if store is not None:
        opened = TaskStore.open(store)
        if spec.name not in opened.table.names:
            raise DatasetError(f"{store} has no data of {spec.name}; it has {', '.join(opened.table.names)}")
        rows = opened.rows_of(spec.name)
        at = rows.sample_transitions(ROWS)
        return Observations(f"recorded in {store}", rows.rows[at, : spec.observation_dim].numpy())
    if not spec.environment.get("kind"):
        return None
    seed = derive_seed("export", spec.name) % 2**31
    _, result = next(play_episodes(spec, policy_act(policy), [seed], record=True))
    if result.episode is None:
        raise ExportError(f"the comparison episode of {spec.name} failed: {result.error}")
    return Observations("of an episode", result.episode.observations[:ROWS])


def random(interface: Interface, known: Observations | None) -> Observations:
    """Normal observations around the known ones, twice as wide; of several magnitudes where none are known."""
    generator = np.random.default_rng(0)
    width = interface.spec.observation_dim
    if interface.index_start is not None:
        return Observations("random", np.eye(width, dtype=np.float32)[generator.integers(width, size=ROWS)])
    normal_BO = generator.standard_normal((ROWS, width))
    if known is None:
        flat_BO = normal_BO * 10.0 ** generator.integers(-1, 2, size=(ROWS, 1))
    else:
        flat_BO = known.flat_BO.mean(0) + 2 * known.flat_BO.std(0) * normal_BO
    if interface.observation_dtype == np.uint8:
        flat_BO = flat_BO.clip(0, 255).round()
    return Observations("random", flat_BO.astype(np.float32))


def difference(policy: Policy, interface: Interface, run: Program, observations: Observations) -> float:
    """Largest difference of an action component in halves of its range; 1 if another choice was made.

    A row in which the policy itself wavers is left out: where it takes the exported action as well for an observation
    that differs by float rounding (two choices of equal worth).
    """
    raw = interface.raw(observations.flat_BO)
    single = raw[:: max(len(raw) // ROWS_ALONE, 1)]
    raw = np.concatenate([raw, single])
    found = np.concatenate([run(raw[: -len(single)]), *(run(row[None]) for row in single)])
    flat_BO = _flat(interface, raw)
    expected = _act(policy, interface, flat_BO)
    if found.shape != expected.shape:
        raise ExportError(f"the exported policy gives actions of shape {found.shape}, expected {expected.shape}")
    apart_B = np.nan_to_num(_apart(interface, found, expected), nan=np.inf)
    for b in np.flatnonzero(apart_B > TOLERANCE):
        if _wavers(policy, interface, flat_BO[b], found[b]):
            apart_B[b] = 0
    return float(apart_B.max())


def _flat(interface: Interface, raw: np.ndarray) -> np.ndarray:
    if interface.environment is None:
        return raw
    space = interface.environment.native.observation_space
    if interface.observation_shape == getattr(space, "shape", None):
        return np.stack([flatten_observation(space, row) for row in raw])
    return raw  # of a Dict or Tuple, which is flat on both sides


def _act(policy: Policy, interface: Interface, flat_BO: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return interface.to_environment(policy.act(torch.from_numpy(flat_BO)).numpy())


def _apart(interface: Interface, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Per row, in halves of the action's range."""
    if interface.spec.action_kind == "discrete":
        return (one != other).astype(float)
    _, half_A = interface.action_scale
    return (np.abs(one.astype(np.float64) - other).reshape(len(one), -1) / half_A).max(1)


def _wavers(policy: Policy, interface: Interface, flat_O: np.ndarray, action: np.ndarray) -> bool:
    noise_BO = np.random.default_rng(0).standard_normal((64, len(flat_O)))
    near_BO = (flat_O + 1e-6 * np.abs(flat_O) * noise_BO).astype(np.float32)
    taken = _act(policy, interface, near_BO)
    return bool((_apart(interface, taken, action[None]) <= TOLERANCE).any())
