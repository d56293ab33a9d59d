"""Prioritized sampling of windows (LAP) over the slots of a replay or a store.

A window is named by the slot of its first step. Windows of different lengths have the same priorities and
different slots at which they may start.

Dimension letters: N slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...pipeline.errors import DatasetError


class Priorities:
    """Priority of every slot, and whether a window of each length may start there."""

    def __init__(self, slots: int, horizons: Sequence[int], device: torch.device, prioritised: bool = True) -> None:
        """Args:
        horizons: lengths of windows, in steps. prioritised: False draws windows uniformly.
        """
        self._prioritised = prioritised
        self.weight = torch.zeros(slots, device=device)
        """[N] priorities, already raised to their exponent."""
        self.starts = {horizon: torch.zeros(slots, dtype=torch.bool, device=device) for horizon in horizons}
        """[N] bool by length: whether a window may start there."""
        self.largest = torch.ones((), device=device)
        """What new slots get: the largest priority so far. It never falls."""

    def check(self, horizon: int, used: int) -> None:
        """Raise a DatasetError if no window of this length may start in the first `used` slots. Makes the host wait."""
        if not self.starts[horizon][:used].any():
            raise DatasetError(
                f"no window of {horizon} steps: every episode is shorter and truncated; use a shorter "
                "encoder_horizon and return_horizon, or longer episodes"
            )

    def cumulative(self, horizon: int, used: int) -> torch.Tensor:
        """Return the cumulative priorities of the first `used` slots, for `losses.draw_by_priority`; valid until
        priorities or starts change. Call `check` first."""
        starts = self.starts[horizon][:used]
        weight = torch.where(starts, self.weight[:used], 0) if self._prioritised else starts
        return weight.cumsum(0, dtype=torch.float64)

    def update(self, slots: torch.Tensor, priority: torch.Tensor) -> None:
        """Set the priorities of drawn windows; of one that was drawn twice, the later (on a GPU, either)."""
        self.weight[slots] = priority
        self.largest = torch.maximum(self.largest, priority.max())

    def state_dict(self, used: int) -> dict[str, Any]:
        return {
            "weight": self.weight[:used].clone(),
            "starts": {horizon: starts[:used].clone() for horizon, starts in self.starts.items()},
            "largest": self.largest.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        used = len(state["weight"])
        self.weight[:used] = state["weight"]
        for horizon, starts in state["starts"].items():
            self.starts[horizon][:used] = starts
        self.largest.copy_(state["largest"])
