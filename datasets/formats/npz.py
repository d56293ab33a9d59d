"""NumPy archives (.npz) of columns: OGBench's datasets, and any other by a column map. Nothing is unpickled.

OGBench's files hold observations, actions and terminals; the last row of a trajectory holds its final observation.
Datasets as its `load_dataset` returns them are read as well: with `next_observations`, or compact with `valids`; and
`masks` and `rewards` of its single-task variants. Source: ogbench 1.2, `utils.load_dataset`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...pipeline.errors import DatasetError
from ...pipeline.reading import check_npz, reading
from .hdf5_file import MOST_COMPRESSED
from .table import ArrayGroup, Group, nest
from .table_reader import TableFormat


class NpzFormat(TableFormat):
    """One archive; an array is read whole when it is first needed."""

    name = "npz"

    @staticmethod
    def detect(source: str, path: Path) -> bool:
        return path.suffix.lower() == ".npz" and path.is_file()

    @staticmethod
    @contextlib.contextmanager
    def open_file(path: Path) -> Iterator[Group]:
        remedy = "download or write it again"
        check_npz(path, DatasetError, remedy, compression=MOST_COMPRESSED)
        with (
            reading(path, DatasetError, remedy),
            path.open("rb") as file,
            np.load(file, allow_pickle=False) as archive,
        ):
            arrays = {name: partial(_array, archive, name, path) for name in archive.files}
            yield ArrayGroup(str(path), nest(arrays))


def _array(archive: Any, name: str, path: Path) -> np.ndarray:
    try:
        return np.asarray(archive[name])
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise DatasetError(
            f"{path}: array {name!r} holds pickled Python objects, which could execute code and are not read; expected "
            f"numbers. Save it as one array of numbers, for example np.savez(FILE, {name}=np.concatenate(episodes)) "
            "with a column that marks each episode's last row"
        ) from error
