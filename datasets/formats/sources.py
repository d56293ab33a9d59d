"""What a string that names a dataset means: a file, a folder, a Minari id, or the name of a task made from one.

A folder of TD-MPC2's chunks is many datasets, one per task; which is said beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...pipeline.entry_points import load_each
from ...pipeline.errors import DatasetError
from ...pipeline.paths import user_path
from ..schema import Behaviour
from ..tasks import SIMULATED
from .chain import ChainReader
from .format import Format
from .reader import EpisodeReader

if TYPE_CHECKING:
    from .columns import ColumnMap
    from .tdmpc2 import Rows


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
        source: the file or folder of a dataset; a Minari id, also written `minari/<id>` as the task made from it is
            called; with a `task_set`, a folder of TD-MPC2's chunks. A list of Minari folders holds parts of one
            dataset.
        columns: column map of a format with columns; see `columns.ColumnMap.load`.
        name, behaviour, overrides: of the task; see `MinariReader` and `TableReader`.
        task_set, rows: mt30 or mt80, and where the task `name` is in the chunks; see `Tdmpc2Reader`.

    Raises:
        DatasetError: there is no such dataset, or it cannot be read; says what was looked for.
    """
    if isinstance(source, list):
        return ChainReader([open_reader(part) for part in source])
    source, path = str(source), user_path(source)
    if task_set is not None:
        from .tdmpc2 import Tdmpc2Reader

        return Tdmpc2Reader(path, task_set=task_set, name=name or "", rows=rows, behaviour=behaviour)
    found = find_format(source, path)
    if columns is not None and not found.has_columns:
        raise DatasetError(f"{source}: a column map does not apply to datasets of this format; remove it")
    return found.open(source, path, columns=columns, name=name, behaviour=behaviour, overrides=overrides)


def dataset_task(source: str) -> str:
    """Return the name of the task that a dataset becomes unless the user gives one; `source` itself if it is none."""
    path = user_path(source)
    try:
        return source if source.startswith(SIMULATED) else find_format(source, path).task_name(source, path)
    except DatasetError:
        return source


def dataset_files(source: str | Path) -> list[Path]:
    """The files that hold the episodes of a dataset: what to look at to see whether it has changed.

    Raises:
        DatasetError: there is no such dataset.
    """
    path = user_path(source)
    return find_format(str(source), path).files(str(source), path)


def find_format(source: str, path: Path) -> type[Format]:
    """The format of a dataset.

    Raises:
        DatasetError: it is of none that is known; says of which it seems to be.
    """
    formats = [known for _, known in load_each("formats", Format)]
    for known in formats:
        if known.detect(source, path):
            return known
    raise _unknown(source, path, formats)


_KINDS = {
    ".npy": "a NumPy array",
    ".pkl": "a pickle",
    ".pickle": "a pickle",
    ".csv": "a table in text",
    ".tfrecord": "a TFRecord file",
    ".pt": "a torch file",
    ".pth": "a torch file",
    ".mcap": "a recording of ROS",
    ".bag": "a recording of ROS",
}
_FOLDERS = {
    ".zgroup": "a Zarr store",
    "zarr.json": "a Zarr store",
    "dataset_info.json": "a TensorFlow dataset (RLDS)",
    "main_data.hdf5": "the data of a Minari dataset without its metadata.json",
}
_READ = "an HDF5, .npz or .parquet file, or the folder of a Minari, LeRobot or TorchRL dataset"
_CONVERT = (
    "Write the episodes to one HDF5 file (observations, actions, rewards, and a column that marks each episode's last "
    "row) or to a Minari dataset"
)


def _unknown(source: str, path: Path, formats: Sequence[type[Format]]) -> DatasetError:
    if path.is_file():
        kind = _KINDS.get(path.suffix.lower(), "a file of no known format")
        return DatasetError(f"{source}: not a supported dataset: it is {kind}; expected {_READ}. {_CONVERT}")
    if path.is_dir():
        return _unknown_folder(source, path, formats)
    return DatasetError(
        f"no dataset {source!r}: there is no file or folder {path.absolute()}. Expected {_READ}, or the id of a Minari "
        "dataset (minari/mujoco/hopper/medium-v0); for a simulated task, run the stage collect"
    )


def _unknown_folder(source: str, folder: Path, formats: Sequence[type[Format]]) -> DatasetError:
    """The error for a folder that is a dataset of another format, or holds files of which each is one."""
    for sign, kind in _FOLDERS.items():
        if (folder / sign).is_file():
            return DatasetError(f"{source} is {kind}, which is not supported; expected {_READ}. {_CONVERT}")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if found := [path for path in files if any(known.detect(str(path), path) for known in formats)]:
        return DatasetError(
            f"{source} is a folder of {len(found)} files ({_shown(found)}), of which each is a separate "
            f"dataset; expected one file. Name the files, one per task (tasks=[{source}/{found[0].name}]), or copy the "
            "episodes of one task into one file, one group each"
        )
    if found := [path for path in files if path.suffix.lower() in _KINDS]:
        kind = _KINDS[found[0].suffix.lower()]
        return DatasetError(
            f"{source} is a folder of unsupported files ({_shown(found)}; each {kind}); expected {_READ}. {_CONVERT}"
        )
    return DatasetError(
        f"{source}: not a dataset that can be read; expected {_READ}, which has data/metadata.json, meta/info.json or "
        f"meta.json. {_CONVERT}"
    )


def _shown(files: Sequence[Path]) -> str:
    return ", ".join(path.name for path in files[:3]) + (", ..." if len(files) > 3 else "")
