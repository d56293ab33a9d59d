"""A store of random numbers, for benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from orrery.datasets.schema import Episode, TaskSpec, TaskTable
from orrery.datasets.store import TaskStore, TaskWriter, finish_store


def write_random_store(folder: Path, specs: Sequence[TaskSpec], transitions: int) -> TaskStore:
    """Tasks that hold that many transitions between them, in episodes of their length; read once, so that it is in the
    page cache and mapped."""
    table = TaskTable(list(specs))
    for spec in specs:
        episodes = _episodes(spec, transitions // spec.episode_length // len(specs))
        writer = TaskWriter(folder / spec.slug, spec, table.observation_dim, table.action_dim)
        writer.write(episodes, behaviour="unknown", source={})
    finish_store(folder, table)
    store = TaskStore.open(folder)
    for task in store.tasks:
        task.rows.sum()
    return store


def _episodes(spec: TaskSpec, count: int) -> Iterator[Episode]:
    random = np.random.default_rng(0)
    for _ in range(count):
        yield Episode(
            random.standard_normal((spec.episode_length + 1, spec.observation_dim), dtype=np.float32),
            random.standard_normal((spec.episode_length, spec.action_dim), dtype=np.float32),
            random.standard_normal(spec.episode_length, dtype=np.float32),
            terminated=False,
        )
