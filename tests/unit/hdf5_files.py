"""HDF5 files as others write them."""

from pathlib import Path

import h5py
import numpy as np
from orrery.datasets.formats.hdf5 import Hdf5Reader

ENDS_AT = 7
"""The first episode of `flat_columns` has rows 0..6; the second the other 5."""


def flat_columns(**changes):
    """Twelve transitions of two episodes, D4RL's names: the first terminates, the second times out.

    Observation t of the file is (t, -t), its next observation (t + 0.5, -t - 0.5), its reward t.
    """
    row = np.arange(12.0)
    columns = {
        "observations": np.stack([row, -row], axis=1),
        "next_observations": np.stack([row + 0.5, -row - 0.5], axis=1),
        "actions": np.stack([row / 20, -row / 20, row * 0], axis=1),
        "rewards": row,
        "terminals": row == ENDS_AT - 1,
        "timeouts": row == 11,
    }
    return {key: value for key, value in (columns | changes).items() if value is not None}


def write(path: Path, columns) -> Path:
    """Write a (nested) dict of arrays as an HDF5 file."""
    with h5py.File(path, "w") as file:
        for key, value in columns.items():
            file[key] = value
    return path


def demos(num: int = 11, **changes):
    columns = {}
    for demo in range(num):
        length = 3 + demo
        row = np.arange(length, dtype=np.float64) + 100 * demo
        parts = {
            "obs/b_pose": row[:, None] + [[0, 1]],
            "obs/a_grip": row,
            "next_obs/b_pose": row[:, None] + [[1, 2]],
            "next_obs/a_grip": row + 1,
            "actions": np.zeros((length, 2)),
            "rewards": row,
            "dones": row == row[-1],
        }
        columns |= {f"data/demo_{demo}/{key}": value for key, value in (parts | changes).items() if value is not None}
    return columns


def lengths_and_ends(path: Path, **settings):
    reader = Hdf5Reader(path, **settings)
    return [(len(e), e.terminated) for e in reader], reader.warnings


def records(**changes):
    """Dreamer's records: three episodes of four rows, row t with the action and reward that led to observation t."""
    t = np.arange(12)
    columns = {
        "observation": t[:, None] * 1.0,
        "action": np.where(t % 4, t, 0)[:, None] / 20,
        "reward": np.where(t % 4, t, 0) * 1.0,
        "is_first": t % 4 == 0,
        "is_last": t % 4 == 3,
        "is_terminal": t == 7,
        "discount": np.where(t == 7, 0.0, 1.0),
    }
    return {key: value for key, value in (columns | changes).items() if value is not None}
