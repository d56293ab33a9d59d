"""Parquet files of columns, one row per transition: a column holds a number in each row, or a list of equal length.

Other columns (text, images) are known by name only. Needs pyarrow, the extra `parquet`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ...pipeline.errors import DatasetError
from ...pipeline.reading import check_file, reading
from .table import ArrayGroup, Group
from .table_reader import TableFormat


class ParquetFormat(TableFormat):
    """One file. The columns are read together, when the first of them is needed."""

    name = "parquet"

    @staticmethod
    def detect(source: str, path: Path) -> bool:
        return path.suffix.lower() in (".parquet", ".pq") and path.is_file()

    @staticmethod
    @contextlib.contextmanager
    def open_file(path: Path) -> Iterator[Group]:
        with reading(path, DatasetError, "download or write it again"):
            yield ArrayGroup(str(path), parquet_columns([path]))


def parquet_columns(files: Sequence[Path]) -> dict[str, Any]:
    """A function that reads it for each column of files with the same columns, one after the other.

    Raises:
        DatasetError: pyarrow is not installed, a file is damaged, or one lacks a column of the first.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DatasetError(f"{files[0]}: Parquet files need pyarrow: pip install 'orrery[parquet]'") from error

    def opened(path: Path) -> Any:
        check_file(path, DatasetError)
        with reading(path, DatasetError, "download or write it again"):
            with path.open("rb") as raw:
                if raw.read(24) == b"version https://git-lfs.":
                    raise DatasetError(f"{path}: is a Git LFS pointer; fetch the data with `git lfs pull`")
            return parquet.ParquetFile(path)

    def is_number(kind: Any) -> bool:
        types = pyarrow.types
        if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            kind = kind.value_type
        return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))

    with opened(files[0]) as first:
        kinds = {field.name: field.type for field in first.schema_arrow}
    numbers = [name for name, kind in kinds.items() if is_number(kind)]

    @cache
    def read() -> list[Any]:
        """[one Arrow table for each file]"""
        tables = []
        for path in files:
            with opened(path) as file, reading(path, DatasetError, "download or write it again"):
                if lacking := [name for name in kinds if name not in file.schema_arrow.names]:
                    raise DatasetError(
                        f"{path}: lacks columns of {files[0].name}: {', '.join(lacking)}; download it again"
                    )
                tables.append(file.read(columns=numbers, use_threads=False))
        return tables

    def column(name: str) -> np.ndarray:
        if name not in numbers:
            return np.full(sum(table.num_rows for table in read()), None)
        chunks = [(path, chunk) for path, table in zip(files, read(), strict=True) for chunk in table[name].chunks]
        widths = {width: path for path, chunk in reversed(chunks) for width in _widths(chunk)}
        if len(widths) > 1:
            low, high = min(widths), max(widths)
            raise DatasetError(
                f"{widths[high]}: column {name!r} has rows of {high} numbers, in {widths[low].name} of {low}; expected "
                "the same number in every row. Remove episodes of other tasks or robots, or name other columns in a "
                "column map"
            )
        arrays = [(chunk.flatten() if widths else chunk).to_numpy(zero_copy_only=False) for _, chunk in chunks]
        return np.concatenate(arrays).reshape(-1, *widths) if arrays else np.zeros(0)

    return {name: partial(column, name) for name in kinds}


def _widths(chunk: Any) -> list[int]:
    """Lengths of the lists in a column, each once; none if its rows are numbers."""
    if hasattr(chunk.type, "list_size"):
        return [chunk.type.list_size]
    if not hasattr(chunk.type, "value_type"):
        return []
    return [int(width) for width in np.unique(chunk.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))]
