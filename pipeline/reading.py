"""The boundary between a file that anybody may have written and the code that reads it.

Parsers raise what they like about a damaged file: KeyError, UnicodeDecodeError, RecursionError, an error of their
library. `reading` surrounds all that a format's reader does with a file and turns these into one error that names the
file, so that no reader has to foresee each way in which a file can be wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import math
import os
import stat
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import OrreryError, StageError

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

RESTORE = "restore or recreate the file"

TEXT_COLUMNS = ("algorithm", "task")
"""Columns of tables that hold names."""

YAML_NODES = 200_000
"""Values that a YAML file may hold once its aliases are expanded; an experiment holds some hundred."""


@contextlib.contextmanager
def reading(path: str | Path, error: type[OrreryError], remedy: str = RESTORE) -> Iterator[None]:
    """Turn whatever the block raises into an `error` that names `path`. Errors of ours pass, and gain the path if they
    lack it.

    Args:
        remedy: what to do about a damaged file; ends the message.
    """
    try:
        yield
    except OrreryError as known:
        if str(path) in str(known):
            raise
        raise type(known)(f"{path}: {known}") from known
    except OSError as reason:
        if reason.filename is None:  # of a library that has read the file, HDF5's for example
            raise error(f"{path} cannot be read ({reason}); it is damaged, {remedy}") from reason
        refused = Path(os.fsdecode(reason.filename)).absolute()
        raise error(f"{refused}: {reason.strerror}. {file_remedy(reason, refused)}") from reason
    except MemoryError as reason:
        raise error(f"{path}: declares more data than fits into memory; it is damaged, {remedy}") from reason
    except RecursionError as reason:
        raise error(f"{path}: is nested too deeply; it is damaged, {remedy}") from reason
    except Exception as reason:
        said = " ".join(str(reason).split())[:300]
        raise error(f"{path} cannot be read ({type(reason).__name__}: {said}); it is damaged, {remedy}") from reason


def file_remedy(error: OSError, path: Path, folder: Path | None = None) -> str:
    """What to do where the file system refuses `path`.

    Args:
        folder: where the command writes.
    """
    ours = folder is not None and path.is_relative_to(folder.absolute())
    elsewhere = "choose another folder with run_dir=PATH"
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
        gone = str(folder) if folder is not None and ours and not folder.is_dir() else "It"
        return f"{gone} was deleted or moved; rerun the command to recreate it"
    if error.errno in (errno.EACCES, errno.EPERM):
        with contextlib.suppress(OSError, KeyError):
            return f"It belongs to {path.owner()}: change its permissions" + (f", or {elsewhere}" if ours else "")
        return f"Change the permissions of its folder, or {elsewhere}"
    if error.errno == errno.EROFS:
        return "The file system is mounted read-only: " + (elsewhere if ours else "choose another")
    if error.errno == errno.ELOOP:
        return "A link there points to itself; remove it"
    return "Check the file, then rerun the command"


def check_file(path: Path, error: type[OrreryError]) -> None:
    """Raise `error` unless `path` is a file: opening a named pipe would wait for ever."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as reason:
        found = "a broken link" if path.is_symlink() else "nothing"
        raise error(f"{path}: expected a file, found {found}; {RESTORE}") from reason
    except OSError as reason:
        raise error(f"{path}: {reason.strerror}. {file_remedy(reason, path.absolute())}") from reason
    if not stat.S_ISREG(mode):
        raise error(
            f"{path}: expected a file, found a {'folder' if stat.S_ISDIR(mode) else 'named pipe or device'}; {RESTORE}"
        )


def read_text(path: Path, error: type[OrreryError]) -> str:
    """The text of a file in UTF-8; raises `error`, which names it."""
    check_file(path, error)
    with reading(path, error):
        return path.read_text(encoding="utf-8")


def read_json(path: Path, error: type[OrreryError], remedy: str = RESTORE) -> Any:
    """The value of a JSON file; raises `error`, which names the file."""
    text = read_text(path, error)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as reason:
        raise error(f"{path} is not JSON ({reason}); {remedy}") from reason


def make_again(path: Path) -> str:
    """What to do about a damaged file that a command wrote: without its folder, the command writes it again."""
    return f"delete {path.parent} and rerun the command that created it"


def reading_made(path: Path) -> contextlib.AbstractContextManager[None]:
    """`reading` of a file that a stage or one of its jobs wrote; raises StageError."""
    return reading(path, StageError, make_again(path))


def read_made(path: Path, hint: type[T]) -> T:
    """The JSON value of a file that a stage or one of its jobs wrote, as `decode` gives it.

    Raises:
        StageError: there is no such file, or it is damaged.
    """
    with reading_made(path):
        return decode(hint, read_json(path, StageError, make_again(path)))


def read_csv(path: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """The rows of a CSV file that a stage or one of its jobs wrote.

    Args:
        columns: at least these must be there. Those of TEXT_COLUMNS are read as text, others must hold numbers.
    Raises:
        StageError: there is no such file, it is damaged, or lacks columns.
    """
    import pandas as pd

    check_file(path, StageError)
    with reading_made(path):
        frame = pd.read_csv(path)
        if missing := [column for column in columns if column not in frame]:
            raise StageError(f"{path} lacks columns {', '.join(missing)}; it has: {', '.join(frame.columns)}")
        for column in columns:
            text = column in TEXT_COLUMNS
            known = frame[column].dropna()
            if text and len(known) < len(frame):
                raise StageError(f"{path}: column {column} lacks values; {make_again(path)}")
            if not text and not pd.api.types.is_numeric_dtype(known) and len(known):
                raise StageError(f"{path}: column {column} has text, expected numbers; {make_again(path)}")
        return frame.astype({column: str for column in columns if column in TEXT_COLUMNS})


def check_yaml(path: Path, error: type[OrreryError]) -> None:
    """Raise `error` where aliases of a YAML file expand to more than YAML_NODES values, or to themselves: a few lines
    can stand for billions of values."""
    import yaml

    text = read_text(path, error)
    with reading(path, error, "correct it"):
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as reason:
            raise error(
                f"{path} is not YAML: {' '.join(str(reason).split())}. Quote text with brackets or a colon"
            ) from reason
        if root is not None and (nodes := _expanded(root)) > YAML_NODES:
            found = "without end" if math.isinf(nodes) else f"to {nodes:,} values"
            raise error(f"{path}: its aliases (&name, *name) expand {found}, at most {YAML_NODES:,} are read")


def _expanded(root: Any) -> float:
    """Nodes below a YAML node, each counted as often as it is referred to; infinite where it holds itself."""
    counts: dict[int, float] = {}

    def count(node: Any) -> float:
        if id(node) not in counts:
            counts[id(node)] = math.inf  # until it is known: what refers to itself meanwhile has no end
            inner = node.value if isinstance(node.value, list) else ()
            counts[id(node)] = 1 + sum(sum(map(count, one)) if isinstance(one, tuple) else count(one) for one in inner)
        return counts[id(node)]

    return count(root)


def read_npz(path: Path, error: type[OrreryError], remedy: str = RESTORE) -> dict[str, Any]:
    """The arrays of a file that `numpy.savez` wrote, after comparing the sizes that it declares with its own.

    Raises:
        OrreryError, of the class `error`: there is no such file, or it is damaged.
    """
    import numpy as np

    with reading(path, error, remedy):
        check_npz(path, error, remedy)
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)


def check_npz(path: Path, error: type[OrreryError], remedy: str = RESTORE, *, compression: int = 0) -> None:
    """Raise `error` where an array of a .npz file declares more than the file can hold.

    Args:
        compression: bytes that one byte of the file may stand for; 0 refuses compressed arrays, and pickled ones.
    """
    import zipfile

    import numpy as np

    check_file(path, error)
    with reading(path, error, remedy), zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            stored = record.compress_type == zipfile.ZIP_STORED
            if not (stored or compression) or record.file_size > path.stat().st_size * max(compression, 1):
                raise error(f"{path}: {record.filename} is compressed or larger than the file; {remedy}")
            with archive.open(record) as file:
                version = np.lib.format.read_magic(file)
                header = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
                shape, _, dtype = (header or np.lib.format.read_array_header_2_0)(file)
            if dtype.hasobject and compression:
                continue  # for the caller to refuse if it is read
            if dtype.hasobject or math.prod(shape) * dtype.itemsize > record.file_size:
                raise error(
                    f"{path}: {record.filename} declares {list(shape)} {dtype}, more than the "
                    f"{record.file_size:,} bytes it has; {remedy}"
                )


def decode(hint: type[T], value: Any) -> T:
    """A JSON value as the dataclass `hint`: every field present and of its declared type, nested ones too. Keys that
    this version does not know are left out.

    Raises:
        ValueError: says where in the value, what was expected and what was found.
    """
    found: T = _decode(hint, value, "")
    return found


def _decode(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        hints, fields = _hints(hint), dataclasses.fields(hint)
        prefix = f"{where}." if where else ""
        needed = (f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING)
        if missing := [name for name in needed if name not in value]:
            raise ValueError(f"missing key {prefix}{missing[0]}")
        known = {name: inner for name, inner in value.items() if name in hints}
        return hint(**{name: _decode(hints[name], inner, f"{prefix}{name}") for name, inner in known.items()})
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        rest = [one for one in arguments if one is not type(None)]
        for one in rest[:-1]:
            with contextlib.suppress(ValueError):
                return _decode(one, value, where)
        return _decode(rest[-1], value, where)
    if origin is Literal and value in arguments:
        return value
    if origin in (list, tuple, Sequence) and isinstance(value, list | tuple):
        items = [_decode(arguments[0], inner, f"{where}[{index}]") for index, inner in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {name: _decode(arguments[1], inner, f"{where}.{name}") for name, inner in value.items()}
    kinds: Any = (int, float) if hint is float else hint
    fits = isinstance(kinds, type | tuple) and isinstance(value, kinds)
    if fits and (hint is bool or not isinstance(value, bool)) and not (hint is float and math.isinf(value)):
        return value
    if dataclasses.is_dataclass(hint):
        expected = f"the keys {', '.join(field.name for field in dataclasses.fields(hint))}"
    else:
        expected = hint.__name__ if isinstance(hint, type) and not arguments else str(hint).replace("typing.", "")
    raise ValueError(f"{where or 'its content'}: expected {expected}, found {value!r:.60}")


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)
