"""Fixed-length windows: which rows make batch number `step`, for which rank.

A batch is a pure function of (seed, step, rank, world size, mixture weights). Nothing has to be saved to resume
exactly, and ranks are disjoint by construction.

How batch `step` is drawn. The global batch has `batch_size * world_size` slots. Systematic sampling over the
mixture weights gives each task its slots (the expected share is exactly its weight). Within a task with n windows
and m slots, the windows are cut into m strata of n // m or n // m + 1 after a random rotation, and one window is
drawn from each: every window is equally likely, none is drawn twice in a global batch, and batches spread over all
episodes. Rank r takes slots r, r + world_size, ...

With `reward_windows` > 0, that share of a sparse task's slots is drawn instead from its windows that hold reward, again
one from each stratum. This changes which states are seen, not what the model learns of them.

Dimension letters: B batch, L steps of a window, O observation, A action, K tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from tensordict import TensorDict

from ..pipeline.errors import ConfigError, DatasetError
from ..pipeline.memory import machine_memory, read_at_random
from .store import TaskRows, TaskStore

_BLOCK = 16
"""Batches whose windows are drawn together."""

Split = Literal["train", "held_out", "all"]


@dataclass(frozen=True)
class WindowIndex:
    """Every window of a split, addressed 0..N-1 without listing them; the windows of a task are consecutive.

    P counts the episodes of the split over all tasks.
    """

    first_window: np.ndarray
    """[P + 1] int64, cumulative number of windows."""
    first_row: np.ndarray
    """[P] int64, row where the episode begins: of its task, or of the joined rows."""
    episode_length: np.ndarray
    """[P] int64, steps."""
    terminated: np.ndarray
    """[P] bool."""
    task_window: np.ndarray
    """[K + 1] int64, first window of each task."""

    @classmethod
    def build(
        cls, tasks: Sequence[TaskRows], length: int, split: Split, held_out: float, *, joined: bool = False
    ) -> WindowIndex:
        """Args:
        joined: rows are counted through all tasks, not from the start of each.
        """
        first_row, lengths, terminated, per_task = [], [], [], []
        begin = 0
        for task in tasks:
            chosen = task.held_out(held_out)
            keep = np.ones_like(chosen) if split == "all" else chosen if split == "held_out" else ~chosen
            first_row.append(begin + task.offsets[:-1][keep])
            begin += len(task.rows) if joined else 0
            lengths.append(task.lengths[keep])
            terminated.append(task.terminated[keep])
            # A terminated episode keeps every start: the model has to see the end, and `valid` masks what follows.
            counts = np.where(terminated[-1], lengths[-1], np.maximum(lengths[-1] - length + 1, 0))
            per_task.append(counts)
        return cls(
            first_window=np.concatenate([[0], np.cumsum(np.concatenate(per_task))]),
            first_row=np.concatenate(first_row),
            episode_length=np.concatenate(lengths),
            terminated=np.concatenate(terminated),
            task_window=np.concatenate([[0], np.cumsum([counts.sum() for counts in per_task])]),
        )

    @property
    def counts(self) -> np.ndarray:
        """[K] int64, windows per task."""
        return np.diff(self.task_window)

    def locate(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First row, steps left from there (may exceed L), whether the end is terminal."""
        position = np.searchsorted(self.first_window, windows, side="right") - 1
        within = windows - self.first_window[position]
        return self.first_row[position] + within, self.episode_length[position] - within, self.terminated[position]


@dataclass(frozen=True)
class RewardWindows:
    """Windows of sparse tasks that hold a reward above half the task's maximum, as runs of consecutive windows."""

    share: float
    """Of a task's slots that are drawn from them."""
    first_window: np.ndarray
    """[Q] int64, where a run begins; runs of a task are consecutive."""
    before: np.ndarray
    """[Q + 1] int64, windows in the runs before."""
    task_window: np.ndarray
    """[K + 1] int64, position of the first of each task; a task that is not sparse has none."""

    @classmethod
    def find(
        cls, tasks: Sequence[TaskRows], index: WindowIndex, length: int, share: float, *, joined: bool = False
    ) -> RewardWindows | None:
        """Those of the tasks of which fewer than `share` of the windows hold reward; None if no such task has any.

        Reads all rewards. `index` is of windows of `length` steps, `joined` as it was built.
        """
        firsts, counts, per_task = [], [], []
        row_before = 0
        for task, begin, count in zip(tasks, index.task_window[:-1], index.counts, strict=True):
            reward = task.rows[:, -1].cpu().numpy()
            seen = np.concatenate([[0], np.cumsum(reward > max(float(reward.max()) / 2, 0))])
            first_row, left, _ = index.locate(np.arange(begin, begin + count))
            first_row -= row_before
            row_before += len(task.rows) if joined else 0
            holds = seen[first_row + np.minimum(left, length)] > seen[first_row]
            sparse = 0 < holds.sum() < share * len(holds)
            change = np.diff(holds & sparse, prepend=False, append=False).nonzero()[0]
            firsts.append(begin + change[::2])
            counts.append(change[1::2] - change[::2])
            per_task.append(counts[-1].sum())
        if not any(per_task):
            return None
        before, task_window = (np.cumsum([0, *parts]) for parts in (np.concatenate(counts), per_task))
        return cls(share, np.concatenate(firsts), before, task_window)

    def locate(self, positions: np.ndarray) -> np.ndarray:
        """Numbers of the windows at `positions`."""
        run = np.searchsorted(self.before, positions, side="right") - 1
        return self.first_window[run] + positions - self.before[run]


class WindowSampler:
    """Batches of windows over the tasks of a store."""

    def __init__(
        self,
        store: TaskStore,
        *,
        length: int,
        batch_size: int,
        seed: int,
        weights: Mapping[str, float] | None = None,
        rank: int = 0,
        world_size: int = 1,
        split: Split = "train",
        held_out: float = 0.0,
        reward_windows: float = 0.0,
        stage: str = "",
    ) -> None:
        """Args:
            length: L, steps per window; a batch carries L + 1 observations.
            batch_size: B, windows per rank and batch.
            weights: share of each task by name, any positive scale; a task not named gets 1. None is uniform.
            reward_windows: share of a task's windows that are drawn from those that hold reward, where fewer of them
                do; the rest are drawn from all, and one may be drawn twice in a batch.
            held_out: fraction of the episodes of each task that `split="train"` leaves out. Of a task with fewer
                held-out windows than slots, some are drawn twice.
            stage: whose settings errors name.
        Raises:
            ConfigError: a weight for an unknown task, or negative, or all zero; more slots than windows.
            DatasetError: a task without a single window.
        """
        self.length, self.batch_size = length, batch_size
        self._observation_dim = store.table.observation_dim
        self._width = self._observation_dim + store.table.action_dim + 1
        self._tasks, self._seed, self._rank, self._world_size = store.tasks, seed, rank, world_size
        # What is drawn from: the rows of each task, or of all of them where the store holds them in one tensor.
        self._joined = store.joined is not None
        self._sources = [task.rows for task in store.tasks] if store.joined is None else [store.joined]
        self._windows = [_overlapping(rows, length + 1) for rows in self._sources]
        self._device = self._sources[0].device
        self._index = WindowIndex.build(store.tasks, length, split, held_out, joined=self._joined)
        self._rewarded: RewardWindows | None = None
        if reward_windows:
            self._rewarded = RewardWindows.find(store.tasks, self._index, length, reward_windows, joined=self._joined)
        if not self._joined and store.num_bytes > machine_memory() / 2:
            # Windows lie all over the files, and what is read ahead of one would be gone before another needs it. Of a
            # smaller store it stays, and fills memory faster.
            for rows in self._sources:
                read_at_random(rows.data_ptr(), rows.nbytes)
        self._terminates = bool(self._index.terminated.any())
        self._drawn_block = -1
        self._drawn: tuple[np.ndarray, ...] = ()
        always, never = (torch.tensor(value, device=self._device).expand(batch_size, length) for value in (True, False))
        self._no_end = always, never
        """`valid` and `terminated` of every batch where nothing terminates; expanded, so that nobody writes to them."""
        shares, keys = _shares(store, weights), f"{stage}." if stage else ""
        self._cumulative = np.cumsum(shares)
        for task, share, count in zip(store.tasks, shares, self._index.counts, strict=True):
            if share > 0 and count == 0:
                raise DatasetError(
                    f"task {task.spec.name!r} has no window of {length} steps in its {split} episodes "
                    f"(longest: {task.lengths.max()}); use a shorter {keys}horizon, or weight 0 for this task"
                )
            # One more than the share for rounding, and never more than there are.
            slots = min(int(np.ceil(share * batch_size * world_size)) + 1, batch_size * world_size)
            if share > 0 and count < slots and split != "held_out":
                raise ConfigError(
                    f"task {task.spec.name!r} has {count} windows of {length} steps, but a global batch needs up to "
                    f"{slots} ({batch_size} per rank x {world_size} ranks); use a smaller {keys}batch_size or fewer "
                    "ranks"
                )

    @property
    def on_device(self) -> bool:
        """Whether batches are made in the memory of a GPU."""
        return self._device.type != "cpu"

    def batch(self, step: int) -> TensorDict:
        """Batch number `step` of this rank.

        Returns:
            TensorDict [B]: observation [B, L+1, O], action [B, L, A], reward [B, L] float32; terminated [B, L],
            valid [B, L] bool; task [B] int64. Observation and action are zero-padded at the end to the table's
            maximum; everything after the end of an episode is zero and not valid. Sorted by task.
        """
        block, position = divmod(step, _BLOCK)
        if block != self._drawn_block:
            self._drawn_block, self._drawn = block, self._draw_block(block)
        task, start, left, ends_terminal = (values[position] for values in self._drawn)
        rows = torch.empty(self.batch_size, self.length + 1, self._width, device=self._device)
        parts = [len(start)] if self._joined else np.bincount(task, minlength=len(self._tasks)).tolist()
        drawn, end = zip(self._to_device(start).split(parts), rows.flatten(1).split(parts), parts, strict=True), 0
        for source, windows, (starts, out, count) in zip(self._sources, self._windows, drawn, strict=True):
            end += count
            # On the host, where looking at them does not wait for the device.
            if not self._terminates or start[end - count : end].max(initial=0) < len(windows):
                torch.index_select(windows, 0, starts, out=out)
            else:
                out.copy_(_past_the_end(source, starts, self.length + 1).flatten(1))
        return self._assemble(rows, *(self._to_device(values) for values in (left, ends_terminal, task)))

    def _to_device(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)

    def _draw_block(self, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Task, first row, steps left and whether the end is terminal, of this rank's slots of _BLOCK batches.

        Each [_BLOCK, B], sorted by task. Drawn together because one batch is little work for many calls of numpy.
        """
        random = np.random.default_rng([self._seed, block])
        slots, counts = self.batch_size * self._world_size, self._index.counts
        # Systematic sampling: slot i is of the task in whose share (i + u) / slots lies, one u per batch.
        ends = np.ceil(self._cumulative * slots - random.random((_BLOCK, 1))).astype(np.int64)
        ends[:, -1] = slots
        slots_of_task = np.diff(ends, prepend=0)

        def of_slot(values: np.ndarray) -> np.ndarray:
            """[_BLOCK, slots] from values per task, [K] or [_BLOCK, K]."""
            per_task = np.broadcast_to(values, slots_of_task.shape)
            return per_task.ravel().repeat(slots_of_task.ravel()).reshape(_BLOCK, slots)

        stratum = np.arange(slots) - of_slot(ends - slots_of_task)
        width = of_slot(counts / np.maximum(slots_of_task, 1))
        # The end of one stratum and the start of the next are the same expression, so no window lies in both.
        low, high = (stratum * width).astype(np.int64), ((stratum + 1) * width).astype(np.int64)
        drawn = low + (random.random((_BLOCK, slots)) * (high - low)).astype(np.int64)
        drawn += of_slot((random.random((_BLOCK, len(counts))) * counts).astype(np.int64))
        count = of_slot(counts)
        windows = of_slot(self._index.task_window[:-1]) + np.where(drawn < count, drawn, drawn - count)
        if (rewarded := self._rewarded) is not None:
            own = np.diff(rewarded.task_window)
            # So many of each task's slots, the first ones; on average exactly its share.
            strata = (rewarded.share * slots_of_task + random.random(slots_of_task.shape)).astype(np.int64) * (own > 0)
            chosen = stratum < of_slot(strata)
            within = (stratum + random.random(stratum.shape))[chosen] / of_slot(strata)[chosen]
            at = of_slot(rewarded.task_window[:-1])[chosen] + (within * of_slot(own)[chosen]).astype(np.int64)
            windows[chosen] = rewarded.locate(at)
        mine = slice(self._rank, None, self._world_size)
        task = of_slot(np.arange(len(counts)))
        return np.ascontiguousarray(task[:, mine]), *self._index.locate(windows[:, mine])

    def _assemble(
        self, rows: torch.Tensor, left: torch.Tensor, ends_terminal: torch.Tensor, task: torch.Tensor
    ) -> TensorDict:
        if self._terminates:
            time = torch.arange(self.length + 1, device=self._device)
            rows *= (time <= left[:, None])[..., None]
            time = time[:-1]
            valid = time < left[:, None]
            terminated = ends_terminal[:, None] & (time == left[:, None] - 1)
        else:
            valid, terminated = self._no_end
        return TensorDict(
            {
                "observation": rows[..., : self._observation_dim],
                "action": rows[:, :-1, self._observation_dim : -1],
                "reward": rows[:, :-1, -1],
                "terminated": terminated,
                "valid": valid,
                "task": task,
            },
            batch_size=[self.batch_size],
        )


def _shares(store: TaskStore, weights: Mapping[str, float] | None) -> np.ndarray:
    """[K] mixture shares that sum to 1."""
    weights = weights or {}
    if unknown := sorted(set(weights) - set(store.table.names)):
        raise ConfigError(f"mixture weights for {unknown}, but the store holds: {', '.join(store.table.names)}")
    values = np.array([float(weights.get(name, 1.0)) for name in store.table.names])
    if (values < 0).any() or values.sum() <= 0 or not np.isfinite(values).all():
        raise ConfigError(f"mixture weights must be finite, not negative and not all zero; found {dict(weights)}")
    return values / values.sum()


def _overlapping(rows: torch.Tensor, length: int) -> torch.Tensor:
    """Every run of `length` rows as one row of a matrix, [R - length + 1, length * width], without copying.

    Drawing a window is then one contiguous copy.
    """
    width = rows.shape[1]
    return rows.as_strided((max(len(rows) - length + 1, 0), length * width), (width, 1))


def _past_the_end(rows: torch.Tensor, starts: torch.Tensor, length: int) -> torch.Tensor:
    """Windows [m, length, width] some of which, after a terminal state, reach past the end of the file."""
    return rows[(starts[:, None] + torch.arange(length, device=rows.device)).clamp_(max=len(rows) - 1)]
