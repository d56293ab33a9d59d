"""d3rlpy's `ReplayBuffer.dump`: an HDF5 file with one array per episode and part, `observations_0`, `actions_0`, ...

An episode of T steps has T observations, actions and rewards; `terminated_0` says whether it reached a terminal state.
The parts of tuple observations have a second number, `observations_0_1`. Source: d3rlpy 2.8, `dataset/io.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Set
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ...pipeline.errors import DatasetError
from .hdf5_file import Columns, is_hdf5, open_hdf5
from .table import ArrayGroup, Group
from .table_reader import TableFormat


class D3rlpyFormat(TableFormat):
    """The numbered arrays as one group per episode."""

    name = "d3rlpy"

    @staticmethod
    def detect(source: str, path: Path) -> bool:
        if not path.is_file() or not is_hdf5(path):  # opening a pipe would wait for ever
            return False
        try:
            with h5py.File(path, "r") as file:
                return "actions_0" in file and ("observations_0" in file or "observations_0_0" in file)
        except (OSError, RuntimeError):  # of which the reader of HDF5 files says what it is
            return False

    @staticmethod
    @contextlib.contextmanager
    def open_file(path: Path) -> Iterator[Group]:
        with open_hdf5(path) as file:
            names = set(file)
            numbers = list(takewhile(lambda i: f"actions_{i}" in names, count()))
            stated = int(file["num_episodes"][()]) if "num_episodes" in names else len(numbers)
            if stated != len(numbers):
                raise DatasetError(
                    f"{path}: states {stated:,} episodes, but holds actions_0 to actions_{len(numbers) - 1}; the file "
                    "is incomplete, dump the buffer again"
                )
            table = Columns(file["/"])
            yield ArrayGroup(str(path), {f"episode_{i}": _episode(names, table, i) for i in numbers})


def _episode(names: Set[str], table: Columns, number: int) -> dict[str, Any]:
    def column(name: str) -> Any:
        return partial(table.__getitem__, name)

    whole = f"observations_{number}"
    parts = {str(j): column(f"{whole}_{j}") for j in takewhile(lambda j: f"{whole}_{j}" in names, count())}
    items: dict[str, Any] = {"observations": parts or column(whole), "actions": column(f"actions_{number}")}
    if f"rewards_{number}" in names:
        items["rewards"] = column(f"rewards_{number}")
    if f"terminated_{number}" in names:
        items["terminated"] = partial(_flag_last, table, number)
    return items


def _flag_last(table: Columns, number: int) -> np.ndarray:
    """[T] bool, set at the last step if the episode terminated."""
    flags = np.zeros(len(table[f"actions_{number}"]), bool)
    flags[-1:] = bool(np.asarray(table[f"terminated_{number}"][()]).any())
    return flags
