"""Windows as Lightning data: whole batches, in the order that the step number decides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import lightning
import numpy as np
import torch
from tensordict import TensorDict
from torch.utils.data import DataLoader, IterableDataset

from ..pipeline.paths import user_path
from .store import TaskRows, TaskStore
from .windows import Split, WindowIndex, WindowSampler


@dataclass(frozen=True)
class WindowSettings:
    """What the two loaders draw."""

    horizon: int
    """Steps per training window."""
    batch_size: int
    """Windows per rank and step."""
    seed: int
    held_out: float
    """Fraction of the episodes of each task kept for validation."""
    validation_length: int
    """Steps per validation window; fewer where the held-out episodes of a task are shorter."""
    validation_batches: int
    weights: dict[str, float] = field(default_factory=dict)
    """Mixture weights by task; uniform where empty."""
    tasks: tuple[str, ...] = ()
    """Only windows of these tasks; of all where empty."""
    reward_windows: float = 0.0
    """Share of a sparse task's training windows that hold reward."""
    stage: str = ""
    """Stage whose settings these are, for error messages."""
    load_up_to_gb: float = 0.0
    """A store of at most this size is loaded into the memory of the training device; a larger one is mapped."""


class Windows(Protocol):
    """Batches by their number."""

    @property
    def on_device(self) -> bool: ...
    def batch(self, step: int) -> TensorDict: ...


class _Batches(IterableDataset):
    """Batches `first`, `first + 1`, ... of a sampler; `count` of them, or without end."""

    def __init__(self, sampler: Windows, first: int = 0, count: int | None = None, *, ahead: bool = False) -> None:
        self._sampler, self._first, self._count, self._ahead = sampler, first, count, ahead

    def __iter__(self) -> Iterator[TensorDict]:
        steps = itertools.count(self._first) if self._count is None else range(self._first, self._first + self._count)
        return _drawn_ahead(self._sampler.batch, steps) if self._ahead else map(self._sampler.batch, steps)


def _pinned(draw: Callable[[int], TensorDict], step: int) -> TensorDict:
    """Each field in page-locked memory, in one piece.

    A batch holds columns of shared rows, which a copy to the GPU would gather in ordinary memory first, and constants
    expanded to its size, which torch refuses to pin.
    """
    return draw(step).apply(lambda field: field.contiguous().pin_memory())


def _drawn_ahead(draw: Callable[[int], TensorDict], steps: Iterable[int]) -> Iterator[TensorDict]:
    """Batches in page-locked memory, each drawn by a thread while the one before it is trained on."""
    with ThreadPoolExecutor(1, thread_name_prefix="windows") as pool:
        waiting: Future[TensorDict] | None = None
        for step in steps:
            following = pool.submit(_pinned, draw, step)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def _as_it_is(batch: TensorDict) -> TensorDict:
    """The default collate function takes a TensorDict apart."""
    return batch


class WindowData(lightning.LightningDataModule):
    """Training windows that resume at the trainer's step, and fixed validation windows of held-out episodes."""

    def __init__(self, store: str | Path, settings: WindowSettings) -> None:
        super().__init__()
        self._folder, self._settings = user_path(store), settings
        self._store: TaskStore | None = None

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None  # Lightning attaches it before it asks for a loader
        sampler = self.training_windows()
        # One batch per micro-step; global_step counts optimiser steps.
        first = trainer.global_step * trainer.accumulate_grad_batches
        # From a map to a GPU: reading and copying need not wait for the step before.
        ahead = trainer.strategy.root_device.type == "cuda" and not sampler.on_device
        return DataLoader(_Batches(sampler, first, ahead=ahead), batch_size=None, collate_fn=_as_it_is)

    def val_dataloader(self) -> DataLoader:
        batches = _Batches(self.validation_windows(), count=self._settings.validation_batches)
        return DataLoader(batches, batch_size=None, collate_fn=_as_it_is)

    def training_windows(self, batch_size: int | None = None) -> Windows:
        """What training draws from, for the rank of the trainer, or of a single process if there is none."""
        settings = self._settings
        return self._sampler("train", settings.horizon, batch_size or settings.batch_size)

    def validation_windows(self, length: int | None = None) -> Windows:
        """The same of the held-out episodes, of `length` steps; None is `validation_length()`."""
        length = length or self.validation_length()
        return self._sampler("held_out", length, self._validation_batch_size(length))

    def validation_length(self) -> int:
        """Steps of a validation window: as set, or what the held-out episodes of every task reach."""
        settings, store = self._settings, TaskStore.open(self._folder)
        weights = self._weights(store, "held_out")
        reached = [_reach(task, settings.held_out) for task in store.tasks if weights[task.spec.name]]
        return int(min(settings.validation_length, *reached))

    def _validation_batch_size(self, length: int) -> int:
        """That of training, or what the fewest held-out windows of a task allow: there are few of whole episodes."""
        store, settings = self._opened(), self._settings
        index = WindowIndex.build(store.tasks, length, "held_out", settings.held_out)
        shared = np.array([weight > 0 for weight in self._weights(store, "held_out").values()])
        fewest = int(index.counts[shared].min())
        ranks = self.trainer.world_size if self.trainer else 1
        return max(min(settings.batch_size, (fewest - 1) * int(shared.sum()) // ranks), 1)

    def has_held_out(self) -> bool:
        """Whether there is anything to validate on: no episode of a task is held out where it has only one, and those
        that are may be shorter than a training window."""
        return any(self._weights(TaskStore.open(self._folder), "held_out").values())

    def reward_std(self) -> dict[str, float]:
        """Standard deviation of the reward in the training episodes of every task, read on the host."""
        return {task.spec.name: task.reward_std(self._settings.held_out) for task in TaskStore.open(self._folder).tasks}

    def _weights(self, store: TaskStore, split: Split) -> dict[str, float]:
        """Of every task of the store. In validation all count the same whose held-out episodes hold a window."""
        settings = self._settings
        found = {name: settings.weights.get(name, 1.0) for name in store.table.names}
        if split == "held_out":
            shortest = min(settings.horizon, settings.validation_length)
            found = {task.spec.name: float(_reach(task, settings.held_out) >= shortest) for task in store.tasks}
        return {name: weight * (not settings.tasks or name in settings.tasks) for name, weight in found.items()}

    def _opened(self) -> TaskStore:
        if self._store is None:  # not before: each rank opens its own
            store = TaskStore.open(self._folder)
            fits = store.num_bytes <= self._settings.load_up_to_gb * 1e9
            device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
            self._store = store.load(device) if fits else store
        return self._store

    def transfer_batch_to_device(self, batch: TensorDict, device: torch.device, dataloader_idx: int) -> TensorDict:
        return batch.to(device, non_blocking=True)

    def _sampler(self, split: Split, length: int, batch_size: int) -> WindowSampler:
        trainer, settings, store = self.trainer, self._settings, self._opened()
        return WindowSampler(
            store,
            length=length,
            batch_size=batch_size,
            seed=settings.seed,
            weights=self._weights(store, split),
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            split=split,
            held_out=settings.held_out,
            reward_windows=settings.reward_windows if split == "train" else 0.0,
            stage=settings.stage,
        )


def _reach(task: TaskRows, held_out: float) -> float:
    """Steps of the longest window in a task's held-out episodes: 0 if there are none, and without a limit where
    one terminated, whose windows are padded."""
    chosen = task.held_out(held_out)
    return math.inf if task.terminated[chosen].any() else task.lengths[chosen].max(initial=0)
