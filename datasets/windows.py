"""Fixed-length windows: which rows make batch number `step`, for which rank.

A batch is a pure function of (seed, step, rank, world size, mixture weights). Nothing has to be saved to resume
exactly, and ranks are disjoint by construction.

How batch `step` is drawn. The global batch has `batch_size * world_size` slots. Systematic sampling over the
mixture weights gives each task its slots (the expected share is exactly its weight). Within a task with n windows
and m slots, the windows are cut into m strata of n // m or n // m + 1 after a random rotation, and one window is
drawn from each: every window is equally likely, none is drawn twice in a global batch, and batches spread over all
episodes. Rank r takes slots r, r + world_size, ...

Dimension letters: B batch, L decisions of a window, O observation, A action, K tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from tensordict import TensorDict

from ..pipeline.errors import ConfigError, DatasetError
from .schema import TaskSpec, TaskTable
from .store import TaskRows, TaskStore

Split = Literal["train", "held_out", "all"]


@dataclass(frozen=True)
class WindowIndex:
    """Every window of a split, addressed 0..N-1 without listing them; the windows of a task are consecutive.

    P counts the episodes of the split over all tasks.
    """

    first_window: np.ndarray
    """[P + 1] int64, cumulative number of windows."""
    first_row: np.ndarray
    """[P] int64, row of the task's file where the episode begins."""
    episode_length: np.ndarray
    """[P] int64, decisions."""
    terminated: np.ndarray
    """[P] bool."""
    task_window: np.ndarray
    """[K + 1] int64, first window of each task."""

    @classmethod
    def build(cls, tasks: Sequence[TaskRows], length: int, split: Split, held_out: float) -> WindowIndex:
        first_row, lengths, terminated, per_task = [], [], [], []
        for task in tasks:
            chosen = task.held_out(held_out)
            keep = np.ones_like(chosen) if split == "all" else chosen if split == "held_out" else ~chosen
            first_row.append(task.offsets[:-1][keep])
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
        """First row in its task's file, decisions left from there (may exceed L), whether the end is terminal."""
        position = np.searchsorted(self.first_window, windows, side="right") - 1
        within = windows - self.first_window[position]
        return self.first_row[position] + within, self.episode_length[position] - within, self.terminated[position]


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
    ) -> None:
        """Args:
            length: L, decisions per window; a batch carries L + 1 observations.
            batch_size: B, windows per rank and batch.
            weights: share of each task by name, any positive scale; a task not named gets 1. None is uniform.
            held_out: fraction of the episodes of each task that `split="train"` leaves out.
        Raises:
            ConfigError: a weight for an unknown task, or negative, or all zero; more slots than windows.
            DatasetError: a task without a single window.
        """
        self.table, self.length, self.batch_size = store.table, length, batch_size
        self._tasks, self._seed, self._rank, self._world_size = store.tasks, seed, rank, world_size
        self._index = WindowIndex.build(store.tasks, length, split, held_out)
        self._columns = [_Columns.build(spec, store.table) for spec in store.table]
        shares = _shares(store, weights)
        self._cumulative = np.cumsum(shares)
        for task, share, count in zip(store.tasks, shares, self._index.counts, strict=True):
            if share > 0 and count == 0:
                raise DatasetError(
                    f"task {task.spec.name!r} has no window of {length} decisions in its {split} episodes "
                    f"(longest: {task.lengths.max()}); use a shorter horizon, or weight 0 for this task"
                )
            slots = int(np.ceil(share * batch_size * world_size)) + 1
            if share > 0 and count < slots:
                raise ConfigError(
                    f"task {task.spec.name!r} has {count} windows of {length} decisions, but a global batch draws up "
                    f"to {slots} ({batch_size} per rank x {world_size} ranks); use a smaller batch_size or fewer ranks"
                )

    def batch(self, step: int) -> TensorDict:
        """Batch number `step` of this rank.

        Returns:
            TensorDict [B]: observation [B, L+1, O], action [B, L, A], reward [B, L] float32; terminated [B, L],
            valid [B, L] bool; task [B] int64. Observation and action are zero-padded at the end to the table's
            maximum; everything after the end of an episode is zero and not valid. Sorted by task.
        """
        task, windows = self._draw(step)
        task, windows = task[self._rank :: self._world_size], windows[self._rank :: self._world_size]
        start, left, ends_terminal = self._index.locate(windows)
        observation_dim, action_dim = self.table.observation_dim, self.table.action_dim
        rows = torch.empty(self.batch_size, self.length + 1, observation_dim + action_dim + 1)
        bounds = np.searchsorted(task, np.arange(len(self._tasks) + 1))
        for k, (first, last) in enumerate(pairwise(bounds.tolist())):
            if first < last:
                _gather(self._tasks[k], start[first:last], rows[first:last], self._columns[k])
        return self._assemble(rows, torch.from_numpy(left), torch.from_numpy(ends_terminal), torch.from_numpy(task))

    def _draw(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Task id and window of every slot of global batch `step`, sorted by task."""
        random = np.random.default_rng([self._seed, step])
        slots = self.batch_size * self._world_size
        positions = (np.arange(slots) + random.random()) / slots
        task = np.minimum(np.searchsorted(self._cumulative, positions, side="right"), len(self._tasks) - 1)
        slots_of_task = np.bincount(task, minlength=len(self._tasks))
        stratum = np.arange(slots) - (np.cumsum(slots_of_task) - slots_of_task)[task]
        count, strata = self._index.counts[task], slots_of_task[task]
        low, high = stratum * count // strata, (stratum + 1) * count // strata
        drawn = low + (random.random(slots) * (high - low)).astype(np.int64)
        rotation = (random.random(len(self._tasks)) * self._index.counts).astype(np.int64)
        return task, self._index.task_window[task] + (drawn + rotation[task]) % count

    def _assemble(
        self, rows: torch.Tensor, left: torch.Tensor, ends_terminal: torch.Tensor, task: torch.Tensor
    ) -> TensorDict:
        time = torch.arange(self.length)
        valid = time < left[:, None]
        if int(left.min()) < self.length:
            rows *= (torch.arange(self.length + 1) <= left[:, None])[..., None]
        observation_dim = self.table.observation_dim
        return TensorDict(
            {
                "observation": rows[..., :observation_dim],
                "action": rows[:, :-1, observation_dim:-1],
                "reward": rows[:, :-1, -1],
                "terminated": ends_terminal[:, None] & (time == left[:, None] - 1),
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


@dataclass(frozen=True)
class _Columns:
    """How the columns of a task's rows lie in a padded row: runs to copy (to, from), and runs that stay zero."""

    copied: tuple[tuple[slice, slice], ...]
    zero: tuple[slice, ...]

    @classmethod
    def build(cls, spec: TaskSpec, table: TaskTable) -> _Columns:
        widths = (spec.observation_dim, spec.action_dim, 1)
        padded = (table.observation_dim, table.action_dim, 1)
        runs: list[list[int]] = []  # [to, from, width], joined with the run before where nothing lies between
        zero, to, source = [], 0, 0
        for width, padded_width in zip(widths, padded, strict=True):
            if runs and runs[-1][0] + runs[-1][2] == to:
                runs[-1][2] += width
            else:
                runs.append([to, source, width])
            if width < padded_width:
                zero.append(slice(to + width, to + padded_width))
            to, source = to + padded_width, source + width
        copied = tuple((slice(t, t + w), slice(f, f + w)) for t, f, w in runs)
        return cls(copied, tuple(zero))


def _gather(task: TaskRows, start: np.ndarray, out: torch.Tensor, columns: _Columns) -> None:
    """Copy the window at each start into `out` [m, L + 1, O + A + 1], padding observation and action."""
    rows, width = out.shape[1], task.rows.shape[1]
    starts = torch.from_numpy(start)
    last = task.rows.shape[0] - rows
    if start.max() <= last:
        # One long copy per window: overlapping windows of the file seen as rows of a matrix.
        windows = task.rows.as_strided((last + 1, rows * width), (width, 1))
    else:  # windows that reach past the end of the file, after a terminal state
        indices = (starts[:, None] + torch.arange(rows)).clamp_(max=task.rows.shape[0] - 1)
        windows, starts = task.rows[indices].flatten(1), torch.arange(len(start))
    if not columns.zero:
        torch.index_select(windows, 0, starts, out=out.view(len(start), -1))
        return
    for run in columns.zero:
        out[..., run] = 0
    for part in range(0, len(start), 128):  # through a buffer that stays in cache
        taken = windows.index_select(0, starts[part : part + 128]).view(-1, rows, width)
        here = out[part : part + 128]
        for to, source in columns.copied:
            here[..., to] = taken[..., source]
