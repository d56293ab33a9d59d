"""Windows of several stores in one batch, as tasks of one longer table: new tasks, and old ones that are replayed.

Nothing is copied on disk: a window is widened to the table's padding when it is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDict

from .datamodule import WindowData, Windows, WindowSettings
from .schema import TaskTable
from .store import TaskStore


@dataclass(frozen=True)
class StoreShare:
    """One of the stores."""

    folder: Path
    windows: int
    """Of every training batch of a rank; 0 takes part in validation alone."""
    tasks: tuple[str, ...] = ()
    """Of the store; all of them where empty."""


class JoinedWindows:
    """Batches of several samplers, one after the other in each."""

    def __init__(self, sources: Sequence[tuple[Windows, torch.Tensor]], table: TaskTable) -> None:
        """Args:
        sources: with the id in `table` of each of their tasks, [K] int64.
        """
        self._sources, self._table = sources, table

    @property
    def on_device(self) -> bool:
        """Whether batches are made in the memory of a GPU."""
        return any(windows.on_device for windows, _ in self._sources)

    def batch(self, step: int) -> TensorDict:
        """Batch number `step`, as `WindowSampler.batch` describes it; sorted by task within each source."""
        parts: Any = [self._widened(windows.batch(step), ids_K) for windows, ids_K in self._sources]
        joined: Any = torch.cat(parts)  # of TensorDicts, which torch's types know nothing of
        return joined

    def _widened(self, batch: TensorDict, ids_K: torch.Tensor) -> TensorDict:
        widths = {"observation": self._table.observation_dim, "action": self._table.action_dim}
        padded = {name: F.pad(batch[name], (0, width - batch[name].shape[-1])) for name, width in widths.items()}
        task = batch["task"]
        return batch.clone(recurse=False).update({**padded, "task": ids_K.to(task.device)[task]})


class JoinedWindowData(WindowData):
    """`WindowData` of several stores whose tasks are all in one table."""

    def __init__(self, shares: Sequence[StoreShare], table: TaskTable, settings: WindowSettings) -> None:
        """Args:
        settings: `batch_size` is that of all shares together; `weights` count within each.
        """
        super().__init__(shares[0].folder, settings)
        self._shares, self._table = tuple(shares), table
        self._parts = [WindowData(share.folder, replace(settings, tasks=share.tasks)) for share in shares]

    def has_held_out(self) -> bool:
        return any(part.has_held_out() for part in self._parts)

    def training_windows(self, batch_size: int | None = None) -> Windows:
        drawn = [(part, share) for part, share in zip(self._attached(), self._shares, strict=True) if share.windows]
        return self._joined([(part.training_windows(share.windows), share) for part, share in drawn])

    def validation_windows(self, length: int | None = None) -> Windows:
        length = length or self.validation_length()
        drawn = [pair for pair in zip(self._attached(), self._shares, strict=True) if pair[0].has_held_out()]
        return self._joined([(part.validation_windows(length), share) for part, share in drawn])

    def validation_length(self) -> int:
        return min(part.validation_length() for part in self._parts if part.has_held_out())

    def reward_std(self) -> dict[str, float]:
        return {name: std for part in self._parts for name, std in part.reward_std().items()}

    def _attached(self) -> list[WindowData]:
        for part in self._parts:
            part.trainer = self.trainer
        return self._parts

    def _joined(self, sources: Sequence[tuple[Windows, StoreShare]]) -> JoinedWindows:
        return JoinedWindows([(windows, self._ids(share)) for windows, share in sources], self._table)

    def _ids(self, share: StoreShare) -> torch.Tensor:
        """[K] id in the table of each task of the store; -1 of those that nothing is drawn of."""
        names = TaskStore.open(share.folder).table.names
        known = set(share.tasks or names)
        return torch.tensor([self._table.id_of(name) if name in known else -1 for name in names])
