"""Windows of a store's task, with the rules and priorities of a replay buffer.

Every start whose window fits is used, and windows are padded after a terminal state; both are computed once, because
the data is fixed. Each policy has its own priorities over rows that all policies of the task share.

Dimension letters: R rows, B windows, T steps of a window, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ...datasets.store import TaskRows
from .losses import reward_scale
from .priorities import Priorities
from .replay import ReplayWindows

Encode = Callable[[torch.Tensor], torch.Tensor]


class StoredTask:
    """One policy's view of a task of a store: a `learner.WindowSource`."""

    def __init__(
        self,
        task: TaskRows,
        observation_dim: int,
        horizons: Sequence[int],
        *,
        prioritised: bool = True,
        encode: Encode | None = None,
    ) -> None:
        """Args:
        task: its rows may be mapped from disk or lie in a device's memory.
        observation_dim: O of the store's table.
        horizons: lengths of the windows that will be drawn.
        encode: maps observations [N, O] to the learner's inputs.
        """
        rows = task.rows
        self._rows, self._observation_dim, self._encode = rows, observation_dim, encode
        device = rows.device
        last = torch.from_numpy(task.offsets[1:] - 1).to(device)
        """Row of each episode's final observation."""
        self._not_done = torch.ones(len(rows), device=device)
        self._not_done[last[torch.from_numpy(task.terminated).to(device)] - 1] = 0
        self._not_done[last] = 0
        self.has_terminated = bool(task.terminated.any())
        rewards = rows[:, -1]
        self._scale = reward_scale(rewards, len(rows) - len(last))
        self.priorities = Priorities(len(rows), horizons, device, prioritised)
        self.priorities.weight.fill_(1)
        for horizon, starts in self.priorities.starts.items():
            starts.copy_(torch.from_numpy(allowed_starts(task.offsets, task.terminated, horizon)))

    @property
    def used(self) -> int:
        return len(self._rows)

    def reward_scale(self, released: bool) -> float:
        """Mean absolute reward of the data. The released code does not learn from fixed data, so there is one form."""
        return self._scale

    def slots_of(self, start_B: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """[B, T] rows at `offsets` [T] from the first rows [B] of windows."""
        # What lies past the end of the file comes after a terminal state, and is not looked at.
        return (start_B[:, None] + offsets).clamp(max=len(self._rows) - 1)

    def windows(self, start_B: torch.Tensor, horizon: int) -> ReplayWindows:
        rows, slots = self._take(start_B, torch.arange(horizon, device=start_B.device))
        not_done = self._not_done[slots].cumprod(1)
        reward = rows[..., -1].clone()
        reward[:, 1:] *= not_done[:, :-1]
        return ReplayWindows(rows[..., self._observation_dim : -1], reward, not_done)

    def unpadded_windows(self, start_B: torch.Tensor, horizon: int) -> ReplayWindows:
        rows, slots = self._take(start_B, torch.arange(horizon, device=start_B.device))
        return ReplayWindows(rows[..., self._observation_dim : -1], rows[..., -1], self._not_done[slots])

    def observations(self, start_B: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        observation = self._take(start_B, offsets)[0][..., : self._observation_dim]
        if self._encode is None:
            return observation
        return self._encode(observation.flatten(0, 1)).unflatten(0, observation.shape[:2])

    def _take(self, start_B: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        slots = self.slots_of(start_B, offsets)
        return self._rows[slots], slots


def allowed_starts(offsets: np.ndarray, terminated: np.ndarray, horizon: int) -> np.ndarray:
    """[R] bool: rows at which a window of `horizon` steps may start.

    Args:
        offsets: [E + 1], first row of each episode; the last row of an episode holds its final observation.
        terminated: [E], whether an episode ended in a terminal state: then every step of it is a start.
    """
    rows = np.arange(offsets[-1])
    left = np.repeat(offsets[1:] - 1, np.diff(offsets)) - rows
    return (left >= 1) & ((left >= horizon) | np.repeat(terminated, np.diff(offsets)))
