"""HDF5 files: flat ones in D4RL's style, one group per episode in robomimic's, others by a column map."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from .hdf5_file import is_hdf5, open_hdf5
from .minari_folder import is_minari_folder
from .table import Group
from .table_reader import TableFormat, TableReader


class Hdf5Format(TableFormat):
    """HDF5 files, but for Minari's own: their spaces are in the metadata beside them."""

    name = "hdf5"

    @staticmethod
    def detect(source: str, path: Path) -> bool:
        return is_hdf5(path) and not is_minari_folder(path.parent.parent)

    @staticmethod
    def open_file(path: Path) -> AbstractContextManager[Group]:
        return open_hdf5(path)


class Hdf5Reader(TableReader):
    """An HDF5 file as an EpisodeReader; settings as those of `TableReader`, `name` by default as of the format."""

    def __init__(self, path: str | Path, *, name: str | None = None, **settings: Any) -> None:
        super().__init__(
            path,
            kind="hdf5",
            open_file=Hdf5Format.open_file,
            recognise=Hdf5Format.recognise,
            name=name or Hdf5Format.task_name(str(path), Path(path)),
            **settings,
        )
