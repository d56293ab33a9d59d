"""What a string that names a dataset means: a file, a folder, a Minari id, or the name of a task made from one.

A folder of TD-MPC2's chunks is many datasets, one per task; which is said beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..pipeline.errors import DatasetError
from ..pipeline.paths import user_path
from .chain import ChainReader
from .columns import ColumnMap
from .hdf5 import Hdf5Reader
from .minari import MinariReader, find_minari, is_minari_folder
from .readers import EpisodeReader
from .schema import Behaviour
from .tdmpc2 import Rows, Tdmpc2Reader, is_chunk_folder

HDF5_SUFFIXES = (".hdf5", ".h5")


def open_reader(
    source: str | Path | list[str],
    *,
    columns: ColumnMap | Mapping[str, Any] | str | Path | None = None,
    name: str | None = None,
    behaviour: Behaviour | None = None,
    overrides: Mapping[str, Any] | None = None,
    task_set: str | None = None,
    rows: Sequence[Rows] | None = None,
) -> EpisodeReader:
    """The reader of a dataset.

    Args:
        source: an .hdf5 or .h5 file; a Minari dataset's folder; a Minari id, also written `minari/<id>` as the task
            made from it is called; with a `task_set`, a folder of TD-MPC2's chunks. A list of Minari folders holds
            parts of one dataset.
        columns: column map of an HDF5 file; see `columns.ColumnMap.load`.
        name, behaviour, overrides: of the task; see `MinariReader` and `Hdf5Reader`.
        task_set, rows: mt30 or mt80, and where the task `name` is in the chunks; see `Tdmpc2Reader`.

    Raises:
        DatasetError: there is no such dataset, or it cannot be read; says what was looked for.
    """
    if isinstance(source, list):
        return ChainReader([open_reader(part) for part in source])
    path = user_path(source)
    if task_set is not None:
        return Tdmpc2Reader(path, task_set=task_set, name=name or "", rows=rows, behaviour=behaviour)
    if is_chunk_folder(path):
        raise DatasetError(
            f"{source}: a folder of TD-MPC2's chunks, which hold many tasks; pack them with pack.sources.mt30.path="
            f"{source}, or mt80, and choose among their tasks with tasks=[...]. Only chunks that TD-MPC2 published are "
            "read: write episodes of your own tasks to HDF5 or Minari"
        )
    # Minari's own data file is HDF5 too, but its spaces are in the metadata beside it.
    if path.suffix in HDF5_SUFFIXES and not is_minari_folder(path.parent.parent):
        return Hdf5Reader(path, columns=columns, name=name, behaviour=behaviour, overrides=overrides)
    if columns is not None:
        raise DatasetError(f"{source}: a column map applies to .hdf5 and .h5 files only; remove it for this dataset")
    return MinariReader(_minari_folder(str(source), path), name=name, behaviour=behaviour, overrides=overrides)


def dataset_files(source: str | Path) -> list[Path]:
    """The files that hold the episodes of a dataset: what to look at to see whether it has changed.

    Raises:
        DatasetError: there is no such dataset.
    """
    path = user_path(source)
    if path.suffix in HDF5_SUFFIXES and not is_minari_folder(path.parent.parent):
        return [path]
    return sorted(file for file in (_minari_folder(str(source), path) / "data").iterdir() if file.is_file())


def _minari_folder(source: str, path: Path) -> Path:
    if path.suffix in HDF5_SUFFIXES:
        return path.parent.parent
    if path.is_file():
        raise DatasetError(f"{source}: not a dataset that can be read; expected {', '.join(HDF5_SUFFIXES)} or a folder")
    if path.is_dir():
        return find_minari(path)
    dataset_id = source.removeprefix("minari/")
    if dataset_id == source and not re.search(r"-v\d+$", source):
        raise DatasetError(
            f"no dataset {source!r}: expected an .hdf5 or .h5 file, the folder of a Minari dataset, or a Minari id "
            "such as mujoco/hopper/medium-v0; to make data for a simulated task run the collect stage"
        )
    return find_minari(dataset_id)
