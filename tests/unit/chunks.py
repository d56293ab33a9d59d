"""Chunks in the published layout of TD-MPC2's datasets, with numbers that say which row, frame and column they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from orrery.datasets.formats.tdmpc2 import LAYOUTS
from orrery.datasets.tasks import task_spec
from orrery.datasets.tasks.tdmpc2 import SETS
from tensordict import TensorDict

Arrays = dict[str, np.ndarray]


def task_rows(task_set: str, name: str, count: int, seed: int = 0, filler: float = np.nan) -> Arrays:
    """Rows of one task: random observations and actions padded as published, and filler at index 0."""
    layout, spec = LAYOUTS[task_set], task_spec(name)
    random = np.random.default_rng(seed)
    frames = (count, layout.row_length)
    rows = {
        "obs": np.zeros((*frames, layout.observation_dim), np.float32),
        "action": np.zeros((*frames, 6), np.float32),
        "reward": random.uniform(0, 2, frames).astype(np.float32),
        "task": np.full(frames, SETS[task_set].index(name), np.int32),
    }
    rows["obs"][..., : spec.observation_dim] = random.normal(size=(*frames, spec.observation_dim))
    rows["action"][..., : spec.action_dim] = random.uniform(-1, 1, (*frames, spec.action_dim))
    rows["action"][:, 0], rows["reward"][:, 0] = filler, filler
    return rows


def meet(rows: Arrays, groups: Sequence[int]) -> Arrays:
    """The same rows, where each but the first of a group starts with the last observation of the row before it."""
    row = 0
    for size in groups:
        for later in range(row + 1, row + size):
            rows["obs"][later, 0] = rows["obs"][later - 1, -1]
        row += size
    return rows


def joined(*parts: Arrays) -> Arrays:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def cut(rows: Arrays, start: int, stop: int | None = None) -> Arrays:
    return {key: value[start:stop] for key, value in rows.items()}


def write_chunks(folder: Path, *chunks: Arrays, legacy: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    for index, rows in enumerate(chunks):
        content = TensorDict({key: torch.from_numpy(value) for key, value in rows.items()}, rows["task"].shape)
        torch.save(content, folder / f"chunk_{index}.pt", _use_new_zipfile_serialization=not legacy)
    return folder
