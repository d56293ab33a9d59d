"""What the readers see of any file of columns: groups that hold columns by name, each with one row per transition.

An HDF5 file is read through its own groups; `ArrayGroup` gives the arrays of other files the same interface.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import h5py
import numpy as np

from .hdf5_file import Columns


class Column(Protocol):
    """An array on disk or in memory, [N, ...]."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def size(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice) -> np.ndarray: ...


class Table(Protocol):
    """The columns of one group, by their paths below it."""

    def __getitem__(self, key: str) -> Any: ...
    def rows(self, key: str, start: int, stop: int) -> np.ndarray: ...


class ArrayGroup:
    """Arrays by name, with the interface of an HDF5 group as far as the readers use it."""

    def __init__(
        self,
        filename: str,
        items: Mapping[str, Any],
        *,
        name: str = "/",
        file: ArrayGroup | None = None,
        labels: Mapping[str, Sequence[str]] | None = None,
        attrs: Mapping[str, Any] | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        """Args:
        filename: start of error messages.
        items: a column, a function that reads one when it is first asked for, or a mapping of the same: a group.
        labels: names of the numbers of a row, for the columns that have them.
        attrs: what the file says beside its columns.
        warnings: what to warn of, whichever columns are read.
        """
        self.filename, self.name, self.file = filename, name, file or self
        self.labels, self.attrs, self.warnings = labels or {}, attrs or {}, list(warnings)
        self._items = items
        self._read: dict[str, Any] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __contains__(self, path: str) -> bool:
        *parents, last = _parts(path) or [""]
        group = self.get("/".join(parents))
        return isinstance(group, ArrayGroup) and last in group._items

    def __getitem__(self, path: str) -> Any:
        if (found := self.get(path)) is None:
            raise KeyError(path)
        return found

    def get(self, path: str) -> Any:
        """The column or group at a path below this group; None if there is none."""
        found: Any = self
        for part in _parts(path):
            if not isinstance(found, ArrayGroup) or part not in found._items:
                return None
            found = found._child(part)
        return found

    def values(self) -> Iterator[Any]:
        return map(self._child, self._items)

    def rows(self, key: str, start: int, stop: int) -> np.ndarray:
        """Rows [stop - start, ...] of a column."""
        return np.asarray(self[key][start:stop])

    def columns(self) -> list[str]:
        """Paths of all columns, without reading them."""
        return [
            path
            for name, item in self._items.items()
            for path in ([f"{name}/{rest}" for rest in self._child(name).columns()] if _nested(item) else [name])
        ]

    def _child(self, name: str) -> Any:
        item = self._items[name]
        if not _nested(item) and not callable(item):
            return item
        if name not in self._read:
            path = f"{self.name.rstrip('/')}/{name}"
            self._read[name] = ArrayGroup(self.filename, item, name=path, file=self.file) if _nested(item) else item()
        return self._read[name]


Group: TypeAlias = Any
"""h5py.Group, which has no types, or ArrayGroup."""


def _nested(item: Any) -> bool:
    return isinstance(item, Mapping)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def nest(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Columns by paths such as `obs/goal`, as nested mappings."""
    nested: dict[str, Any] = {}
    for path, value in arrays.items():
        *parents, last = _parts(path)
        group = nested
        for name in parents:
            group = group.setdefault(name, {})
        group[last] = value
    return nested


def is_group(item: Any) -> bool:
    """Whether an item of a group is a group itself."""
    return isinstance(item, h5py.Group | ArrayGroup)


def is_column(item: Any) -> bool:
    """Whether an item of a group is a column; None, for what is not there, is none."""
    return hasattr(item, "shape")


def columns_of(group: Group) -> list[str]:
    """Paths of all columns below a group, sorted."""
    if isinstance(group, ArrayGroup):
        return sorted(group.columns())
    names: list[str] = []
    group.visit_links(names.append)
    return sorted(name for name in names if isinstance(group.get(name), h5py.Dataset))


def table_of(group: Group) -> Table:
    """The columns of a group, to be read from it many times."""
    return group if isinstance(group, ArrayGroup) else Columns(group)
