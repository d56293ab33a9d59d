"""Selection of the rows that carry a weight, as a function of the seed.

Dimension letters: N rows, M centres, O state.
"""

from __future__ import annotations

import numpy as np
import torch

from ...pipeline.errors import ConfigError
from .actions import ActionKernel
from .config import SELECTIONS
from .kernels import StateKernel
from .transitions import Transitions

CHOLESKY_POOL = 10
"""Pivoted Cholesky chooses among this many random rows per centre: time and memory grow as pool x M x M."""


def choose_centres(
    rows: Transitions, count: int, selection: str, seed: int, kernel: StateKernel, actions: ActionKernel
) -> torch.Tensor:
    """Indices [M] int64 of the rows that become centres, ascending.

    Args:
        selection: uniform draws `count` rows without replacement. distinct does so among rows of different (state,
            action), so M is smaller where fewer exist: copies of a centre only make the system ill-conditioned.
            cholesky takes distinct rows that the earlier ones explain worst.
    Raises:
        ConfigError: an unknown selection, or more centres than rows.
    """
    if selection not in SELECTIONS:
        raise ConfigError(f"selection must be one of {', '.join(SELECTIONS)}, found {selection!r}")
    if count < 1:
        raise ConfigError(f"centres must be at least 1, found {count}")
    if count > len(rows):
        raise ConfigError(f"{count} centres of {len(rows)} rows: use at most {len(rows)}")
    random = np.random.default_rng(seed)
    pool = np.arange(len(rows)) if selection == "uniform" else distinct_rows(rows)
    if selection == "cholesky":
        pool = random.permutation(pool)[: CHOLESKY_POOL * count]
        chosen = _pivots(rows[torch.from_numpy(pool)], count, kernel, actions, random)
        pool = pool[chosen]
    elif count < len(pool):
        pool = random.choice(pool, count, replace=False)
    return torch.from_numpy(np.sort(pool))


def distinct_rows(rows: Transitions) -> np.ndarray:
    """The first row of every distinct (state, action), ascending: [M]."""
    joint = torch.cat([rows.state_NO, rows.action.double().reshape(len(rows), -1)], 1).cpu().numpy()
    return np.sort(np.unique(joint, axis=0, return_index=True)[1])


def _pivots(
    rows: Transitions, count: int, kernel: StateKernel, actions: ActionKernel, random: np.random.Generator
) -> np.ndarray:
    """Randomly pivoted partial Cholesky of the kernel matrix (Chen, Epperly, Tropp and Webber, arXiv 2207.06503).

    Each pivot is drawn with probability proportional to what the pivots so far leave unexplained of k(x, x).
    """
    residual_N = kernel.diagonal(rows.state_NO).clone()
    start = float(residual_N.max())
    factor_NM = residual_N.new_zeros(len(rows), count)
    chosen: list[int] = []
    for m in range(min(count, len(rows))):
        weight_N = residual_N.clamp(min=0).cpu().numpy()
        if weight_N.max() <= 1e-12 * start:
            break
        pivot = int(random.choice(len(weight_N), p=weight_N / weight_N.sum()))
        one = rows[pivot : pivot + 1]
        column_N = kernel(rows.state_NO, one.state_NO)[:, 0] * actions.between(rows.action, one.action)[:, 0]
        column_N -= factor_NM[:, :m] @ factor_NM[pivot, :m]
        factor_NM[:, m] = column_N / column_N[pivot].sqrt()
        residual_N -= factor_NM[:, m].square()
        residual_N[pivot] = 0
        chosen.append(pivot)
    return np.array(chosen)
