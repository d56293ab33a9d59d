"""HDF5 files as they are opened and read here: nothing outside the file, each chunk unpacked once, clear errors.

Knows nothing of episodes; `hdf5.py` decides which rows to read.
"""

from __future__ import annotations

import contextlib
import errno
import math
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from ...pipeline.errors import DatasetError
from ...pipeline.reading import reading

HDF5_SUFFIXES = (".hdf5", ".h5", ".hdf", ".he5")
"""In lower case."""
_SHOWN_BYTES = 40
MOST_COMPRESSED = 1032
"""Bytes that deflate makes one of, at the most."""


def is_hdf5(path: Path) -> bool:
    """Whether a path is called an HDF5 file, or is one under another name."""
    return path.suffix.lower() in HDF5_SUFFIXES or (path.is_file() and h5py.is_hdf5(path))


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """The open file; whatever it raises in the block becomes a DatasetError.

    Raises:
        DatasetError: there is no such file, it is not HDF5, it is damaged, it is open for writing elsewhere, or it
            links to another file.
    """
    if not path.is_file():
        pattern = "; patterns are not supported: name one file" if set("*?[") & set(path.name) else ""
        raise DatasetError(f"no HDF5 file at {path}: expected an existing .hdf5 or .h5 file{pattern}")
    with reading(path, DatasetError):
        path.open("rb").close()  # of a file that may not be read HDF5 says that it is damaged
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DatasetError(f"{path}: {_why_closed(path, error)}") from error
    with reading(path, DatasetError, "download or write it again"), file:
        _refuse_links(file)
        yield file


def _refuse_links(file: h5py.File) -> None:
    outside: list[bytes] = []

    def keep(name: bytes, link: h5py.h5l.LinkInfo) -> None:
        if link.type == h5py.h5l.TYPE_EXTERNAL:
            outside.append(name)

    # visititems_links, which makes an object for each link, takes ten times as long.
    file.id.links.visit(keep, info=True)
    if outside:
        first = [(name.decode(errors="replace"), file.get(name, getlink=True)) for name in outside[:3]]
        links = [f"{name!r} to {link.filename}" for name, link in first]
        raise DatasetError(
            f"{file.filename}: links to other files ({', '.join(links)}{', ...' if len(outside) > 3 else ''}), which "
            "are not followed; expected one file with all its data. Copy the linked data into it, for example with "
            "h5copy"
        )


def _why_closed(path: Path, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "cannot be read: permission denied; allow this user to read it"
    if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK) or "already open for write" in str(error):
        return (
            f"is open for writing in another process, or was not closed by its writer ({error}); wait until it is "
            "complete, or run `h5clear -s` on it if no process has it open"
        )
    if "unable to lock file" in str(error):
        return (
            f"cannot be locked on this file system ({error}); set the environment variable "
            "HDF5_USE_FILE_LOCKING=FALSE, or copy it to a local disk"
        )
    with path.open("rb") as raw:
        start = raw.read(_SHOWN_BYTES)
    if not start:
        return "cannot be opened as HDF5: it is empty (0 bytes); download or write it again"
    if start.startswith(b"version https://git-lfs"):
        return "is not HDF5 but a Git LFS pointer to it; fetch the data with `git lfs pull`"
    if not h5py.is_hdf5(path):
        shown = start.split(b"\n")[0]
        return (
            f"cannot be opened as HDF5: it is not HDF5 (it starts with {shown!r}) but another format or a failed "
            "download; download or write it again"
        )
    return f"cannot be opened as HDF5 ({error}); it is damaged or incomplete, download or write it again"


class Columns:
    """The columns of one group, each opened once.

    HDF5 keeps an unpacked chunk only while its dataset is open, and only if its cache has room for the chunks of a row.
    """

    def __init__(self, group: h5py.Group) -> None:
        self._group = group
        self._file_bytes = group.file.id.get_filesize()
        self._open: dict[str, h5py.Dataset] = {}

    def __getitem__(self, key: str) -> h5py.Dataset:
        """The column at a path below the group.

        Raises:
            KeyError: there is no such column.
            DatasetError: its values are in another file, or it says that it is larger than the file can hold.
        """
        if key not in self._open:
            self._open[key] = _open_column(self._group, key, self._file_bytes)
        return self._open[key]

    def rows(self, key: str, start: int, stop: int) -> np.ndarray:
        """Rows [stop - start, ...] of a column.

        Raises:
            DatasetError: they cannot be read.
        """
        try:
            return self[key][start:stop]
        except OSError as error:
            place = self._group.name.strip("/")
            raise DatasetError(
                f"{self._group.file.filename}: column {f'{place}/{key}' if place else key!r} cannot be read in rows "
                f"{start} to {stop - 1} ({error}); the file is damaged, download or write it again"
            ) from error


def check_size(column: h5py.Dataset, file_bytes: int) -> None:
    """Raise a DatasetError if a column says that it is larger than its whole file of that size can hold."""
    num_bytes = math.prod(column.shape or ()) * column.id.get_type().get_size()
    if num_bytes > MOST_COMPRESSED * file_bytes:
        raise DatasetError(
            f"{column.file.filename}: {column.name} claims to be {list(column.shape)} {column.dtype}, more than the "
            "file can hold; the file is damaged, download or write it again"
        )


def _open_column(group: h5py.Group, key: str, file_bytes: int) -> h5py.Dataset:
    column = _dataset(group, key)
    outside = [str(file) for file, *_ in column.external or ()]
    if column.is_virtual:
        outside += [source.file_name for source in column.virtual_sources() if source.file_name != "."]
    if outside:
        raise DatasetError(
            f"{group.file.filename}: column {column.name.strip('/')!r} stores its values in other files "
            f"({', '.join(sorted(set(outside))[:3])}), which are not read; expected them in this file. Write it again "
            "without external storage, for example with h5repack"
        )
    check_size(column, file_bytes)
    access = _access_with_room(column)
    if access is None:
        return column
    del column  # HDF5 keeps the cache of a dataset that is open
    return _dataset(group, key, access)


def _dataset(group: h5py.Group, key: str, access: h5py.h5p.PropDAID | None = None) -> h5py.Dataset:
    """A dataset of a file open for reading; `group[key]`, which asks for kind and mode first, takes twice as long."""
    return h5py.Dataset(h5py.h5d.open(group.id, key.encode(), access), readonly=True)


def _access_with_room(column: h5py.Dataset) -> h5py.h5p.PropDAID | None:
    """Access to a column with a cache for two rows of chunks, which are those that an episode across their border
    reads; None if it has that."""
    if column.chunks is None:
        return None
    access = column.id.get_access_plist()
    num_slots, num_bytes, preemption = access.get_chunk_cache()
    chunks = 2 * math.prod(-(-size // chunk) for size, chunk in zip(column.shape[1:], column.chunks[1:], strict=True))
    needed = chunks * math.prod(column.chunks) * column.dtype.itemsize
    # A chunk's slot is its number modulo the slots; two of one slot drive each other out.
    if needed <= num_bytes and chunks <= num_slots:
        return None
    access.set_chunk_cache(max(num_slots, chunks), max(num_bytes, needed), preemption)
    return access
