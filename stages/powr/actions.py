"""Kernels of actions, and the finite set of actions of a policy.

POWR needs that set only for the softmax and its expectation. With discrete actions it is the actions themselves and
the kernel is [a = a']; with continuous ones it is a set of candidates, while the data keep their own actions,
and a Gaussian kernel relates the two. (Snapping the data's actions to the candidates would bias the dynamics.)

Dimension letters: N rows, M centres, U actions to choose from, A components of a continuous action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np
import torch

from ...pipeline.errors import ConfigError
from .kernels import gaussian

MAX_GRID = 1024
"""Candidates of a grid: a step costs n x U x m beside n x m x m."""


class ActionKernel(Protocol):
    """ka(a, a'), and the U actions that a policy weighs."""

    @property
    def num(self) -> int:
        """U."""
        ...

    def check(self, action: torch.Tensor) -> None:
        """Raise ConfigError unless `action` holds actions of this kind."""
        ...

    def between(self, a_N: torch.Tensor, b_M: torch.Tensor) -> torch.Tensor:
        """ka(a, b): [N, M] float64."""
        ...

    def of_choices(self, b_M: torch.Tensor) -> torch.Tensor:
        """ka(u, b) for every u that a policy chooses from: [U, M] float64."""
        ...

    def partition(self, a_N: torch.Tensor, b_M: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the blocks (rows, centres) outside of which ka is zero."""
        ...

    def within(self, kernel_NM: torch.Tensor, a_N: torch.Tensor, b_M: torch.Tensor) -> torch.Tensor:
        """Multiply a kernel of states, of the rows and centres of one part, by ka. May work in place."""
        ...


@dataclass(frozen=True)
class DiscreteActions:
    """[a = a']; an action is its index, int64."""

    num: int

    def check(self, action: torch.Tensor) -> None:
        if action.is_floating_point() or action.ndim != 1:
            width = action.shape[1] if action.ndim == 2 else 1
            raise ConfigError(
                f"actions are continuous ({width} component{'s' * (width > 1)}) and there are no candidates; set "
                "candidates: kmeans (of the data's actions) or grid"
            )
        if len(action) and not 0 <= int(action.min()) <= int(action.max()) < self.num:
            raise ConfigError(f"actions {int(action.min())}..{int(action.max())}, expected 0..{self.num - 1}")

    def between(self, a_N: torch.Tensor, b_M: torch.Tensor) -> torch.Tensor:
        return (a_N[:, None] == b_M).double()

    def of_choices(self, b_M: torch.Tensor) -> torch.Tensor:
        return self.between(torch.arange(self.num, device=b_M.device), b_M)

    def partition(self, a_N: torch.Tensor, b_M: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        parts = [((a_N == u).nonzero()[:, 0], (b_M == u).nonzero()[:, 0]) for u in range(self.num)]
        return [(rows, centres) for rows, centres in parts if len(rows) and len(centres)]

    def within(self, kernel_NM: torch.Tensor, a_N: torch.Tensor, b_M: torch.Tensor) -> torch.Tensor:
        return kernel_NM


@dataclass(frozen=True)
class CandidateActions:
    """Gaussian kernel between actions [N, A]; the policy chooses among candidates."""

    candidate_UA: torch.Tensor
    scale_A: torch.Tensor
    """Per component, in units of the action."""

    @property
    def num(self) -> int:
        return len(self.candidate_UA)

    def check(self, action: torch.Tensor) -> None:
        if not action.is_floating_point() or action.ndim != 2 or action.shape[1] != self.candidate_UA.shape[1]:
            raise ConfigError(
                f"candidates have {self.candidate_UA.shape[1]} components, the data's actions {list(action.shape[1:])}"
            )

    def between(self, a_N: torch.Tensor, b_M: torch.Tensor) -> torch.Tensor:
        return gaussian(a_N, b_M, self.scale_A)

    def of_choices(self, b_M: torch.Tensor) -> torch.Tensor:
        return self.between(self.candidate_UA, b_M)

    def partition(self, a_N: torch.Tensor, b_M: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(torch.arange(len(a_N), device=a_N.device), torch.arange(len(b_M), device=b_M.device))]

    def within(self, kernel_NM: torch.Tensor, a_N: torch.Tensor, b_M: torch.Tensor) -> torch.Tensor:
        return kernel_NM.mul_(self.between(a_N, b_M))


def grid_candidates(points: Sequence[float], action_dim: int) -> torch.Tensor:
    """Every combination of `points` over the components: [U, A].

    Raises:
        ConfigError: more than MAX_GRID combinations.
    """
    if len(points) ** action_dim > MAX_GRID:
        raise ConfigError(
            f"a grid of {len(points)} points over {action_dim} action components has {len(points) ** action_dim} "
            f"candidates, at most {MAX_GRID} are practical; use fewer points or candidates: kmeans"
        )
    return torch.tensor(list(product(points, repeat=action_dim)), dtype=torch.float64)


def kmeans_candidates(action_NA: torch.Tensor, count: int, seed: int, passes: int = 30) -> torch.Tensor:
    """Centroids of the data's actions: Lloyd's algorithm from k-means++ starts: [U, A], U <= count.

    Fewer if the data hold fewer distinct actions.
    """
    random = np.random.default_rng(seed)
    action_NA = action_NA.double()
    count = min(count, len(torch.unique(action_NA, dim=0)))
    centroid_UA = action_NA[random.integers(len(action_NA))][None]
    while len(centroid_UA) < count:
        gap_N = torch.cdist(action_NA, centroid_UA).amin(1).square().cpu().numpy()
        chosen = random.choice(len(gap_N), p=gap_N / gap_N.sum())
        centroid_UA = torch.cat([centroid_UA, action_NA[chosen][None]])
    for _ in range(passes):
        nearest_N = torch.cdist(action_NA, centroid_UA).argmin(1)
        share_NU = torch.nn.functional.one_hot(nearest_N, count).double()
        filled = share_NU.sum(0) > 0
        centroid_UA[filled] = (share_NU.T @ action_NA)[filled] / share_NU.sum(0)[filled, None]
    return centroid_UA
