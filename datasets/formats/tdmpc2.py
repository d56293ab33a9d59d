"""TD-MPC2's offline datasets, `chunk_*.pt` of mt30 and mt80, as episodes: one reader per task.

A chunk is a TensorDict of E rows of L frames: obs [E, L, O], action [E, L, 6] and reward [E, L] in float32, task [E, L]
a whole number, the task's position in `tasks.tdmpc2.SETS`. Observations are padded with zeros to the widest task of the
set, actions to 6. Frame 0 of a row has an observation; its action and reward are filler (NaN or whatever memory held)
and are never read: action and reward of frame t + 1 are those that lead from frame t to it. Nothing says where an
episode terminated, and none of these tasks terminates. Success is not recorded.

Rows are grouped by task, and the tasks are spread over chunks of up to 13 GB. `find_rows` compares each chunk's
checksums, reads the task column and says where each task's rows are; a reader then touches only these, through a memory
map of one chunk at a time, so that all readers together read every chunk once. A pack that was interrupted keeps the
tasks that were finished, does not read their rows again, and begins the others anew.

Joining. mt80 has rows of 101 frames, which is a whole episode of Meta-World and a fifth of one of dm_control: its count
of rows fits 501 frames cut at frames 100, 200, 300 and 400 with the frame at the cut in both rows. The chunks do not
say so. What can be seen is whether a row starts with the very observation (bit for bit) that the task's row before it
ends with; then the two are joined, up to the task's episode length. Initial states are drawn at random, so that rows
of different episodes do not meet by chance. Rows that do not meet stay apart, as episodes that were cut off.

Source: TD-MPC2 (arXiv 2310.16828); key names, sizes and dtypes as printed in its repository's issue 87.

Dimension letters: E rows, L frames of a row, O observation of the set, A action.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...pipeline.errors import DatasetError
from ...pipeline.paths import user_path
from ..schema import Behaviour, Episode, TaskSpec
from ..tasks import task_spec
from ..tasks.tdmpc2 import SETS
from .format import Format

BEHAVIOUR: Behaviour = "exploration"
"""Whole replay buffers of 240 agents (three per task), from their first random steps to the trained policy: wide data
around every action. PWM extracts its published policies from it without an anchor, which is this label's default."""

ACTION_DIM = 6
_BLOCK = 4096
"""Rows whose task column is compared at a time."""


@dataclass(frozen=True)
class ChunkLayout:
    """What the chunks of a set look like."""

    row_length: int
    """Frames of a row, L."""
    observation_dim: int
    chunks: int
    """As published."""


LAYOUTS = {"mt30": ChunkLayout(501, 24, 4), "mt80": ChunkLayout(101, 39, 20)}


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of one task in one chunk."""

    chunk: Path
    start: int
    stop: int


@dataclass(frozen=True)
class _Chunk:
    """Arrays in the mapped file."""

    observation: np.ndarray
    """[E, L, O] float32."""
    action: np.ndarray
    """[E, L, 6] float32; [:, 0] is filler."""
    reward: np.ndarray
    """[E, L] float32; [:, 0] is filler."""
    task: np.ndarray
    """[E, L] integers."""


@dataclass(frozen=True)
class _Row:
    chunk: _Chunk
    path: Path
    index: int


_NAME = re.compile(r"chunk_(\d+)\.pt$")


class Tdmpc2Format(Format):
    """Folders of chunks. They hold many tasks, so that `pack` reads them by a source of its own."""

    @staticmethod
    def detect(source: str, path: Path) -> bool:
        return any(_NAME.match(file.name) for file in path.glob("chunk_*.pt"))

    @staticmethod
    def files(source: str, path: Path) -> list[Path]:
        return chunk_files(path)

    @staticmethod
    def open(source: str, path: Path, **settings: Any) -> Tdmpc2Reader:
        raise DatasetError(
            f"{source}: a folder of TD-MPC2's chunks, which hold many tasks; pack them with pack.sources.mt30.path="
            f"{source}, or mt80, and choose among their tasks with tasks=[...]. Only chunks that TD-MPC2 published are "
            "read: write episodes of your own tasks to HDF5 or Minari"
        )


def chunk_files(folder: str | Path) -> list[Path]:
    """The chunks in a folder, by their number.

    Raises:
        DatasetError: there are none.
    """
    folder = user_path(folder)
    numbered = {int(found[1]): path for path in folder.glob("chunk_*.pt") if (found := _NAME.match(path.name))}
    if not numbered:
        raise DatasetError(
            f"{folder}: no chunk_0.pt, chunk_1.pt, ... there; expected the download folder of TD-MPC2's mt30 or mt80 "
            "(nicklashansen/tdmpc2 on Hugging Face)"
        )
    return [path for _, path in sorted(numbered.items())]


def find_rows(
    folder: str | Path, task_set: str, names: Sequence[str], on_chunk: Callable[[], None] = lambda: None
) -> dict[str, tuple[Rows, ...]]:
    """Where the rows of each task are, in the order of the chunks.

    Args:
        folder: holds `chunk_0.pt`, `chunk_1.pt`, ...
        task_set: mt30 or mt80.
        names: of the tasks that are wanted.
        on_chunk: called after each chunk.
    Raises:
        DatasetError: there are no chunks, one does not look as the set's should (said before any is read through), a
            row is of several tasks or of none of the set, or a wanted task has no row.
    """
    files = chunk_files(folder)
    for path in files:
        _open_chunk(path, task_set)
    tasks = SETS[task_set]
    found: dict[str, list[Rows]] = {name: [] for name in names}
    for path in files:
        ids = _task_ids(path, task_set)
        edges = [0, *(np.flatnonzero(np.diff(ids)) + 1).tolist(), len(ids)]
        for start, stop in itertools.pairwise(edges):
            if tasks[ids[start]] in found:
                found[tasks[ids[start]]].append(Rows(path, start, stop))
        on_chunk()
    if absent := [name for name, rows in found.items() if not rows]:
        shown = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more tasks" if len(absent) > 3 else "")
        raise DatasetError(
            f"{folder}: no rows of {shown} in {', '.join(path.name for path in files)}. {task_set} is published in "
            f"{LAYOUTS[task_set].chunks} chunks that are grouped by task: download the others, or name the available "
            "tasks: tasks=[...]"
        )
    return {name: tuple(rows) for name, rows in found.items()}


class Tdmpc2Reader:
    """The episodes of one task of mt30 or mt80 as an EpisodeReader."""

    def __init__(
        self,
        folder: str | Path,
        *,
        task_set: str,
        name: str,
        rows: Sequence[Rows] | None = None,
        behaviour: Behaviour | None = None,
    ) -> None:
        """Args:
            folder: holds the chunks.
            task_set: mt30 or mt80.
            name: of the task, as in `tasks.tdmpc2.SETS`.
            rows: where `find_rows` found it; None looks for it, which reads the task column of every chunk.
            behaviour: how the data was made; default BEHAVIOUR.

        Raises:
            DatasetError: the set has no such task; as `find_rows`.
        """
        if name not in SETS[task_set]:
            raise DatasetError(f"TD-MPC2's {task_set} has no task {name!r}; it has: {', '.join(SETS[task_set])}")
        self.behaviour: Behaviour = behaviour or BEHAVIOUR
        self.warnings: list[str] = []
        self._folder, self._set, self.name = user_path(folder), task_set, name
        self._rows = find_rows(folder, task_set, [name])[name] if rows is None else tuple(rows)

    @cached_property
    def task(self) -> TaskSpec:
        return task_spec(self.name)

    @property
    def source(self) -> Mapping[str, Any]:
        return {
            "format": "tdmpc2",
            "set": self._set,
            "path": str(self._folder.resolve()),
            "rows": {
                name: sum(rows.stop - rows.start for rows in self._rows if rows.chunk.name == name)
                for name in dict.fromkeys(rows.chunk.name for rows in self._rows)
            },
            "actions": "as stored",
            "simulator": "Meta-World v2" if self.task.suite == "metaworld" else "dm_control",
            "episodes": f"rows that continue the previous one are joined, up to {self.task.episode_length} steps",
        }

    def __len__(self) -> int:
        return sum(1 for _ in self._episodes())

    def __iter__(self) -> Iterator[Episode]:
        for rows in self._episodes():
            label = f"{rows[0].path}:row {rows[0].index}"
            if len(rows) > 1:
                last = rows[-1]
                label += f" to {last.index}" if last.path == rows[0].path else f" to {last.path.name}:row {last.index}"
            # The first frame of a later row is the last of the row before it.
            first, later = self._observations(rows[0]), [self._observations(row)[1:] for row in rows[1:]]
            yield Episode(
                observations=np.concatenate([first, *later]) if later else first,
                actions=_joined([row.chunk.action[row.index, 1:, : self.task.action_dim] for row in rows]),
                rewards=_joined([row.chunk.reward[row.index, 1:] for row in rows]),
                terminated=False,
                label=label,
            )

    def _episodes(self) -> Iterator[list[_Row]]:
        """The rows of each episode."""
        open_path, chunk, episode = None, None, list[_Row]()
        num_steps = LAYOUTS[self._set].row_length - 1
        for rows in self._rows:
            if chunk is None or rows.chunk != open_path:
                open_path, chunk = rows.chunk, _open_chunk(rows.chunk, self._set)
            for index in range(rows.start, rows.stop):
                row = _Row(chunk, rows.chunk, index)
                if episode and not _continues(episode[-1], row):
                    yield episode
                    episode = []
                episode.append(row)
                if (len(episode) + 1) * num_steps > self.task.episode_length:
                    yield episode
                    episode = []
        if episode:
            yield episode

    def _observations(self, row: _Row) -> np.ndarray:
        """[L, O of the task] float32."""
        width = self.task.observation_dim
        observations = row.chunk.observation[row.index]
        if observations[:, width:].any():
            raise DatasetError(
                f"{row.path}:row {row.index}: task {self.name!r} has {width} observation columns, but those from "
                f"{width} on are not zero; expected padding. The rows belong to another task: is this {self._set}?"
            )
        return observations[:, :width]


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _continues(before: _Row, row: _Row) -> bool:
    return np.array_equal(before.chunk.observation[before.index, -1], row.chunk.observation[row.index, 0])


def _open_chunk(path: Path, task_set: str, *, checksums: bool = False) -> _Chunk:
    """Map a chunk and check its keys, dtypes and shapes; with `checksums` every byte of it."""
    import torch  # not at the top: a run that has nothing to do starts without it

    from ...pipeline.torch_file import read_torch_file

    layout = LAYOUTS[task_set]
    content = read_torch_file(path, checksums=checksums, error=DatasetError)
    rest = {"obs": (layout.row_length, layout.observation_dim), "action": (layout.row_length, ACTION_DIM)}
    dtypes = {"task": (torch.int32, torch.int64)}
    expected = {key: rest.get(key, (layout.row_length,)) for key in ("obs", "action", "reward", "task")}
    found = content if isinstance(content, dict) else {}
    if sorted(map(str, found)) != sorted(expected) or any(
        not isinstance(found[key], torch.Tensor)
        or found[key].dtype not in dtypes.get(key, (torch.float32,))
        or tuple(found[key].shape[1:]) != shape
        for key, shape in expected.items()
    ):
        wanted = (f"{key} [{', '.join(map(str, ('rows', *shape)))}]" for key, shape in expected.items())
        raise DatasetError(
            f"{path}: is not a chunk of {task_set}: expected {', '.join(wanted)}, task in int32 and the others in "
            f"float32; found {_shapes(content)}. Only TD-MPC2's published chunks (mt30, mt80) are supported: write "
            "episodes of your own tasks to HDF5 or Minari, and pack them with tasks=[FILE.hdf5]"
        )
    for key, value in found.items():
        if len(value) != len(found["obs"]):
            raise DatasetError(
                f"{path}: {key} has {len(value):,} rows, but obs has {len(found['obs']):,}; expected equal numbers"
            )
    return _Chunk(*(found[key].numpy() for key in expected))


def _shapes(content: Any) -> str:
    """What a file holds, in words: shape and dtype of each tensor, the type of anything else."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    entries = [
        f"{key} {list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
        if hasattr(value, "dtype")
        else f"{key} ({type(value).__name__})"
        for key, value in content.items()
    ]
    return ", ".join(entries[:12]) or "nothing"


def _task_ids(path: Path, task_set: str) -> np.ndarray:
    """[E] task of each row."""
    task = _open_chunk(path, task_set, checksums=True).task
    ids = task[:, 0].copy()
    for start in range(0, len(task), _BLOCK):
        block = task[start : start + _BLOCK]
        mixed = np.flatnonzero((block != block[:, :1]).any(axis=1))
        if len(mixed):
            row = start + int(mixed[0])
            raise DatasetError(
                f"{path}:row {row}: has frames of the tasks {sorted(set(task[row].tolist()))}; expected one task per "
                "row. The file is damaged or has another format"
            )
    outside = np.flatnonzero((ids < 0) | (ids >= len(SETS[task_set])))
    if len(outside):
        row = int(outside[0])
        raise DatasetError(
            f"{path}:row {row}: task {ids[row]}, expected 0 to {len(SETS[task_set]) - 1} in {task_set}; "
            "is it a chunk of that set?"
        )
    return ids
