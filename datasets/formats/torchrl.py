"""TorchRL's replay buffers: a folder that `ReplayBuffer.dumps` wrote, one that `TensorDict.memmap` wrote, or a buffer
in memory. Memory-mapped; nothing is unpickled.

A row is a transition as TorchRL's environments and collectors write it: observation, action, and next: observation,
reward, done, terminated, truncated. Rows of several environments are brought together by `collector/traj_ids`, a full
buffer starts with its oldest row, and an episode ends where the next row does not start with the observation that the
transition led to: collectors cut episodes at the ends of their batches. Rows of padding, and those of our own buffers
that hold a final observation only, are False in `collector/mask`, and left out.

Source: torchrl 0.14, `data/replay_buffers`; tensordict 0.14, `TensorDict.memmap`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...pipeline.errors import DatasetError
from ...pipeline.reading import check_file, read_json, reading
from ..spaces import looks_like_images
from .columns import ColumnMap
from .table import ArrayGroup, Column, Group
from .table_reader import TableFormat, TableReader

if TYPE_CHECKING:
    from torchrl.data import ReplayBuffer

_META = "meta.json"
_STORAGE, _WRITER = "storage/storage_metadata.json", "writer/metadata.json"
_TRAJECTORY, _MASK = "collector/traj_ids", "collector/mask"
_KINDS = {"float32", "float64", "float16", "int8", "uint8", "int16", "int32", "int64", "bool"}
_NOT_OBSERVED = {"reward", "done", "terminated", "truncated", "is_init", "step_count", "episode_reward", "action"}
"""Entries of `next` that transforms add, or that every step has."""
_BLOCK = 65536
_LAST = "trajectory_end"
"""Column that is added to those of the buffer."""
_EXPECTED = "expected observation, action, and next with observation, reward and done, as collectors and rollouts write"


class TorchRLFormat(TableFormat):
    """Dumped buffers and tensordicts."""

    name = "torchrl"

    @staticmethod
    def detect(source: str, path: Path) -> bool:
        return (path / _STORAGE).is_file() or (path / _META).is_file()

    @staticmethod
    def files(source: str, path: Path) -> list[Path]:
        return sorted(file for pattern in ("*.memmap", "*.json") for file in path.rglob(pattern))

    @staticmethod
    @contextlib.contextmanager
    def open_file(path: Path) -> Iterator[Group]:
        with reading(path, DatasetError, "dump the buffer again"):
            if not (path / _STORAGE).is_file():
                yield transitions(str(path), _map_folder(path))
                return
            length = int(read_json(path / _STORAGE, DatasetError)["len"])
            writer = path / _WRITER
            cursor = int(read_json(writer, DatasetError).get("cursor", 0)) if writer.is_file() else 0
            yield transitions(str(path), _map_folder(path / "storage"), length, cursor)

    @staticmethod
    def recognise(file: Group) -> tuple[ColumnMap, list[str]]:
        following = [name for name in file["next"] if name in file and name not in _NOT_OBSERVED]
        images = [name for name in following if looks_like_images(file[name].shape[1:], file[name].dtype)]
        observed = [name for name in following if name not in images and not isinstance(file[name], ArrayGroup)]
        if not observed:
            raise DatasetError(
                f"{file.filename}: no state column: next has {', '.join(file['next'])}"
                + (
                    f", of which {', '.join(images)} are images; learning from pixels is not supported"
                    if images
                    else ""
                )
            )
        flags = {name: f"next/{name}" for name in ("terminated", "truncated", "done") if f"next/{name}" in file}
        columns = ColumnMap(
            observation=tuple(observed),
            action="action",
            reward="next/reward",
            last=_LAST,
            next_observation=tuple(f"next/{name}" for name in observed),
            **flags,  # type: ignore[arg-type]
        )
        return columns, [f"images are not read: {', '.join(images)}"] if images else []


def buffer_reader(buffer: ReplayBuffer, **settings: Any) -> TableReader:
    """The transitions of a buffer in memory as an EpisodeReader; settings as those of `TableReader`.

    Raises:
        DatasetError: it is empty, or holds something other than transitions in TensorDicts.
    """
    from tensordict import TensorDictBase

    where = "replay buffer"
    data: Any = buffer[:] if len(buffer) else {}
    if len(buffer) and not (isinstance(data, TensorDictBase) and data.batch_dims == 1):
        found = f"batch size {list(data.shape)}" if isinstance(data, TensorDictBase) else f"a {type(data).__name__}"
        raise DatasetError(f"{where}: holds {found}; {_EXPECTED} them, with a storage of ndim=1")
    cursor = int(buffer.writer.state_dict().get("_cursor", 0))
    group = transitions(where, _arrays(data), cursor=cursor)
    return TableReader(
        where, kind="torchrl", open_file=lambda _: nullcontext(group), recognise=TorchRLFormat.recognise, **settings
    )


def _arrays(data: Any) -> dict[str, Any]:
    """The tensors of a TensorDict, nested, as arrays that share their memory where they are on the CPU."""
    import torch

    found: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, torch.Tensor):
            found[name] = (value.float() if value.dtype == torch.bfloat16 else value).detach().cpu().numpy()
        elif hasattr(value, "items"):
            found[name] = _arrays(value)
    return found


def transitions(where: str, arrays: Mapping[str, Any], length: int | None = None, cursor: int = 0) -> ArrayGroup:
    """The rows of a buffer in the order of time.

    Args:
        where: start of error messages.
        arrays: [N, ...] by key, nested.
        length: rows that are filled; None: all.
        cursor: the row that is written next; rows from there on are the oldest of a full buffer.

    Raises:
        DatasetError: there are no rows, `next` is missing, or the rows do not follow one another.
    """
    group = ArrayGroup(where, arrays)
    if not arrays or length == 0:
        raise DatasetError(f"{where}: the replay buffer is empty; collect before packing")
    if lacking := [key for key in ("action", "next/reward", "next/done") if key not in group]:
        found = ", ".join(group.columns()) or "nothing"
        raise DatasetError(
            f"{where}: no {' and no '.join(lacking)} in the replay buffer, which has {found}; {_EXPECTED} them"
        )
    num_rows = len(group["action"]) if length is None else length
    if num_rows > len(group["action"]):
        raise DatasetError(f"{where}: states {num_rows:,} rows, has {len(group['action']):,}; dump the buffer again")
    order = np.roll(np.arange(num_rows), -cursor if cursor < num_rows else 0)
    if _MASK in group:
        order = order[np.asarray(group[_MASK][:num_rows]).reshape(num_rows, -1)[:, 0][order] > 0]
        if not len(order):
            raise DatasetError(f"{where}: {_MASK} leaves out all {num_rows:,} rows; expected True for each transition")
    last = np.zeros(len(order), bool)
    if _TRAJECTORY in group:
        trajectory = np.asarray(group[_TRAJECTORY][:num_rows]).reshape(num_rows, -1)[:, 0]
        order = order[np.argsort(trajectory[order], kind="stable")]
        last[:-1] = np.diff(trajectory[order]) != 0
    ordered, num_rows = _ordered(arrays, order), len(order)
    in_order = ArrayGroup(where, ordered)
    for name in ("terminated", "truncated", "done"):
        if f"next/{name}" in group:
            last |= np.asarray(in_order[f"next/{name}"][:]).reshape(num_rows, -1).any(1)
    apart = ~last & ~_continues(in_order, num_rows)
    apart[-1] = False
    said = []
    if 2 * apart.sum() > (~last).sum() > 1:
        raise DatasetError(
            f"{where}: {apart.sum():,} of {num_rows:,} rows are not followed by the state that they lead to; expected "
            "rows in the order of time. Buffers of several environments need collector/traj_ids, or data that is "
            "flattened environment by environment"
        )
    if apart.any():
        said.append(
            f"{apart.sum():,} rows lead to another observation than that of the next row: an episode is cut off there"
        )
    return ArrayGroup(where, {**ordered, _LAST: last | apart}, warnings=said)


def _continues(group: ArrayGroup, num_rows: int) -> np.ndarray:
    """[N] bool, whether a row leads to the observation of the next one; True if that is not stored."""
    same = np.ones(num_rows, bool)
    for name in [name for name in group["next"] if name in group and name not in _NOT_OBSERVED]:
        now, following = group[name], group[f"next/{name}"]
        if isinstance(now, ArrayGroup) or isinstance(following, ArrayGroup) or now.shape != following.shape:
            continue
        if looks_like_images(now.shape[1:], now.dtype):
            continue
        for start in range(0, num_rows - 1, _BLOCK):
            stop = min(start + _BLOCK, num_rows - 1)
            led_to = np.asarray(following[start:stop]).reshape(stop - start, -1)
            found = np.asarray(now[start + 1 : stop + 1]).reshape(stop - start, -1)
            same[start:stop] &= ((led_to == found) | (np.isnan(led_to) & np.isnan(found))).all(1)
    return same


class _Ordered:
    """Rows of a column in another order."""

    def __init__(self, column: Column, order: np.ndarray) -> None:
        self._column, self._order = column, order
        self.dtype, self.ndim, self.shape = column.dtype, column.ndim, (len(order), *column.shape[1:])
        self.size = math.prod(self.shape)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.asarray(self._column[self._order[rows]])  # type: ignore[index]


def _ordered(arrays: Mapping[str, Any], order: np.ndarray) -> dict[str, Any]:
    return {
        name: _ordered(item, order) if isinstance(item, Mapping) else _Ordered(item, order)
        for name, item in arrays.items()
    }


def _map_folder(folder: Path) -> dict[str, Any]:
    """The memory maps of a tensordict's folder, nested."""
    meta = read_json(folder / _META, DatasetError)
    if "TensorDict" not in str(meta.get("_type")):
        raise DatasetError(f"{folder / _META}: describes a {meta.get('_type')}; expected a TensorDict")
    if len(meta["shape"]) != 1:
        raise DatasetError(
            f"{folder}: has the batch size {meta['shape']}; expected one dimension, transition after transition. Write "
            "data.reshape(-1) of rollouts, and a buffer with a storage of ndim=1"
        )
    arrays: dict[str, Any] = {}
    for name, entry in meta.items():
        if not isinstance(entry, dict):
            continue
        if entry.get("type") == "TensorDict":
            arrays[name] = _map_folder(folder / name)
        elif "dtype" in entry and not entry.get("is_nested"):
            kind, shape = str(entry["dtype"]).removeprefix("torch."), entry["shape"]
            if kind in _KINDS and math.prod(shape):
                file = folder / f"{name}.memmap"
                check_file(file, DatasetError)
                arrays[name] = np.memmap(file, np.dtype(kind), mode="r", shape=tuple(shape))
    return arrays
