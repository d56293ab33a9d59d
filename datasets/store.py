"""TaskStore: episodes packed as contiguous float32 rows, one file per task, read by memory map.

Layout of a store folder:

    tasks.json              the TaskTable; task id = position
    store.json              counts, statistics, provenance and findings per task
    <task slug>/rows.f32    [R, O + A + 1] float32: observation | action | reward, at the table's widths
    <task slug>/episodes.npz    offsets [E + 1] int64, terminated [E] bool, returns [E] float64, ...

An episode of T steps has T + 1 rows. Its last row holds the final observation; the action and reward there are zero and
never part of a window. Observation and action are zero-padded to the widest task of the table, so that a window of any
task is one contiguous copy into a batch. This yields 1.5 times as many batches per second as padding while sampling, at
the cost of disk space. Checksums are in the artifact's manifest.json.

Dimension letters: R rows, E episodes, O observation and A action of the table.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..pipeline.artifact import digests_of, finish, hash_json, publish, unfinished
from ..pipeline.errors import DatasetError
from ..pipeline.paths import user_path
from ..pipeline.reading import decode, read_json, read_made, read_npz, reading
from ..pipeline.wording import counted
from .facts import EPISODES_FILE
from .schema import Behaviour, Episode, TaskSpec, TaskTable, read_table

if TYPE_CHECKING:
    import torch
    from torchrl.data import ReplayBuffer, TensorDictReplayBuffer

FORMAT = 1
STORE_FILE = "store.json"
STATISTICS_ROWS = 65536
"""Transitions of a task, at most, from which statistics of its data are taken."""


@dataclass(frozen=True)
class TaskSummary:
    """The entry of one task in store.json."""

    task: str
    behaviour: Behaviour
    episodes: int
    transitions: int
    terminated: int
    """Episodes that ended in a terminal state."""
    return_mean: float
    return_std: float
    return_min: float
    return_max: float
    length_mean: float
    success_rate: float | None
    """Share of episodes with success at any step; None if the task does not report success."""
    success_rate_last: float | None
    observation_mean: list[float]
    observation_std: list[float]
    source: Mapping[str, Any]
    findings: Mapping[str, Any]
    """Anomalies that validation accepted."""
    reward_min: float | None = None
    """Smallest reward of a step; None in stores of versions that did not record it."""
    reward_max: float | None = None
    generated: int = 0
    """Number of generated episodes, which come last; returns, lengths and success rates exclude them."""
    content: str = ""
    """Digest of observations, actions, rewards and ends of all episodes, without padding; empty in stores of earlier
    versions."""


class TaskWriter:
    """Streams the episodes of one task to disk, with one episode in memory at a time."""

    def __init__(self, folder: Path, spec: TaskSpec, observation_dim: int, action_dim: int) -> None:
        """Args:
        observation_dim, action_dim: padded widths, those of the table that the store will have.
        """
        self._folder, self._spec = folder, spec
        self._observation_dim, self._action_dim = observation_dim, action_dim
        self._partial = unfinished(folder)

    def write(
        self,
        episodes: Iterable[Episode],
        *,
        behaviour: Behaviour,
        source: Mapping[str, Any],
        findings: Mapping[str, Any] | None = None,
    ) -> TaskSummary:
        """Write all episodes and publish the folder by rename. `findings` may be filled while `episodes` runs.

        Raises:
            DatasetError: no episode came.
        """
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        lengths, returns, terminated, any_success, last_success = [], [], [], [], []
        reward_min, reward_max = np.inf, -np.inf
        content = hashlib.sha256()
        total = np.zeros(self._spec.observation_dim)
        total_squares = np.zeros(self._spec.observation_dim)
        with (self._partial / "rows.f32").open("wb") as file:
            for episode in episodes:
                rows = np.zeros((len(episode) + 1, self._observation_dim + self._action_dim + 1), np.float32)
                rows[:, : self._spec.observation_dim] = episode.observations
                rows[:-1, self._observation_dim :][:, : self._spec.action_dim] = episode.actions
                rows[:-1, -1] = episode.rewards
                file.write(rows.data)
                for part in (episode.observations, episode.actions, episode.rewards):
                    content.update(np.ascontiguousarray(part, np.float32).data)
                lengths.append(len(episode))
                returns.append(float(episode.rewards.sum(dtype=np.float64)))
                reward_min = min(reward_min, float(episode.rewards.min()))
                reward_max = max(reward_max, float(episode.rewards.max()))
                terminated.append(episode.terminated)
                if episode.success is not None:
                    any_success.append(bool(episode.success.any()))
                    last_success.append(bool(episode.success[-1]))
                observations = episode.observations.astype(np.float64)
                total += observations.sum(0)
                total_squares += np.square(observations).sum(0)
        if not lengths:
            raise DatasetError(f"task {self._spec.name!r}: the dataset {dict(source)} holds no episode")
        offsets = np.concatenate([[0], np.cumsum(np.array(lengths) + 1)])
        np.savez(
            self._partial / EPISODES_FILE,
            offsets=offsets,
            terminated=np.array(terminated),
            returns=np.array(returns),
        )
        content.update(offsets.tobytes() + bytes(terminated))
        mean = total / offsets[-1]
        variance = np.maximum(total_squares / offsets[-1] - mean**2, 0)
        summary = TaskSummary(
            task=self._spec.name,
            behaviour=behaviour,
            episodes=len(lengths),
            transitions=int(sum(lengths)),
            terminated=int(sum(terminated)),
            return_mean=float(np.mean(returns)),
            return_std=float(np.std(returns)),
            return_min=float(np.min(returns)),
            return_max=float(np.max(returns)),
            length_mean=float(np.mean(lengths)),
            success_rate=float(np.mean(any_success)) if any_success else None,
            success_rate_last=float(np.mean(last_success)) if last_success else None,
            observation_mean=mean.tolist(),
            observation_std=np.sqrt(variance).tolist(),
            source=dict(source),
            findings=dict(findings or {}),
            reward_min=reward_min,
            reward_max=reward_max,
            content=content.hexdigest(),
        )
        (self._partial / "task.json").write_text(json.dumps(dataclasses.asdict(summary), indent=1))
        shutil.rmtree(self._folder, ignore_errors=True)
        self._partial.rename(self._folder)
        return summary


def finish_store(folder: Path, table: TaskTable) -> list[TaskSummary]:
    """Write tasks.json and store.json for finished task folders; return the entries of the latter."""
    summaries = [read_made(folder / task.slug / "task.json", TaskSummary) for task in table]
    (folder / "tasks.json").write_text(table.to_json())
    described = {"format": FORMAT, "tasks": list(map(dataclasses.asdict, summaries))}
    (folder / STORE_FILE).write_text(json.dumps(described, indent=1))
    return summaries


def read_summaries(folder: Path) -> list[TaskSummary]:
    """What store.json says of each task, without opening the data; raises StageError where it is missing or damaged."""
    return read_made(folder / STORE_FILE, _StoreRecord).tasks


def data_digests(folder: Path) -> dict[str, str]:
    """Of each task of a store, a digest of its spec and its data, which other tasks of the store do not change."""
    specs, summaries = read_table(folder), read_summaries(folder)
    padded = digests_of(folder, [spec.slug for spec in specs])  # of stores that record no content
    return {
        spec.name: hash_json([spec.to_dict(), one.behaviour, one.generated, one.content or padded[spec.slug]])
        for spec, one in zip(specs, summaries, strict=True)
    }


@dataclass(frozen=True)
class TaskRows:
    """The memory-mapped data of one task."""

    spec: TaskSpec
    summary: TaskSummary
    rows: torch.Tensor
    """[R, O + A + 1] float32, padded; memory-mapped, read-only; writing crashes the process."""
    offsets: np.ndarray
    """[E + 1] int64; episode e takes rows offsets[e] up to offsets[e + 1]."""
    terminated: np.ndarray
    """[E] bool."""
    returns: np.ndarray
    """[E] float64, sum of the episode's rewards."""

    @property
    def lengths(self) -> np.ndarray:
        """[E] int64, steps per episode."""
        return np.diff(self.offsets) - 1

    def check_rewards(self, key: str) -> None:
        """Raise a DatasetError if every reward is zero. `key` excludes the task: mrq.tasks."""
        bounds = self.summary.reward_min, self.summary.reward_max
        if bounds == (0, 0) or (None in bounds and not bool(self.rows[:, -1].any())):
            raise DatasetError(
                f"task {self.spec.name!r}: every reward in the store is zero, so no policy can be learned; pack data "
                f"with rewards, or exclude the task with {key}"
            )

    def held_out(self, fraction: float) -> np.ndarray:
        """Return [E] bool: a fixed random `fraction` of the episodes, at least one if there are two or more.

        The choice depends on the number of episodes only, so every stage that reads the store makes the same one.
        Generated episodes are never held out and do not affect the choice.
        """
        episodes = len(self.terminated) - self.summary.generated
        count = min(max(round(fraction * episodes), 1), episodes - 1) if fraction > 0 else 0
        chosen = np.zeros(len(self.terminated), bool)
        chosen[np.random.default_rng(episodes).permutation(episodes)[:count]] = True
        return chosen

    def sample_transitions(self, limit: int, held_out: float = 0.0) -> torch.Tensor:
        """Return the rows of at most `limit` transitions of episodes that are not held out: [N] int64, ascending.

        For statistics of the data. The choice is random but fixed: evenly spaced rows would all have the same time in
        their episodes if episodes were as long as the spacing. Final rows, which hold no transition, are excluded.
        """
        import torch

        kept = ~self.held_out(held_out)
        first, length = self.offsets[:-1][kept], self.lengths[kept]
        after = np.cumsum(length)
        total = int(after[-1])
        number = np.random.default_rng(total).choice(total, min(limit, total), replace=False)
        number.sort()
        episode = np.searchsorted(after, number, side="right")
        return torch.from_numpy(first[episode] + number - (after - length)[episode])

    def reward_std(self, held_out: float = 0.0) -> float:
        """Standard deviation of the reward over random transitions of episodes that are not held out."""
        return float(self.rows[self.sample_transitions(STATISTICS_ROWS, held_out), -1].double().std())


class TaskStore:
    """A packed dataset of one or more tasks. It may exceed memory: rows are memory-mapped, not loaded."""

    def __init__(
        self, folder: Path, table: TaskTable, tasks: list[TaskRows], joined: torch.Tensor | None = None
    ) -> None:
        self.folder, self.table, self.tasks = folder, table, tasks
        self.joined = joined
        """Rows of all tasks, in order, as one tensor in memory; None if they are memory-mapped."""

    @property
    def num_bytes(self) -> int:
        """Size of all rows in bytes."""
        return sum(task.rows.numel() * task.rows.element_size() for task in self.tasks)

    def rows_of(self, name: str) -> TaskRows:
        """Return the data of a task. Raises TaskError if there is no such task."""
        return self.tasks[self.table.id_of(name)]

    def replay_buffer(
        self, task: str, *, slice_len: int | None = None, batch_size: int = 256, held_out: float = 0.0
    ) -> TensorDictReplayBuffer:
        """A task's transitions as a read-only TorchRL buffer over the mapped rows, without a copy of the data.

            observation [O], action [A], episode, next: observation [O], reward [1], done, terminated, truncated [1]

        `sample` gives transitions only. `buffer[:]` also has a row for the final observation of each episode, which is
        False in collector/mask, as TorchRL marks padding.

        Args:
            slice_len: transitions per sampled slice, which lies within one episode; None samples single transitions.
            batch_size: transitions per sample, a multiple of `slice_len`.
            held_out: share of the episodes that are never sampled, as `TaskRows.held_out` chooses them.
        Raises:
            TaskError: the store has no such task.
            DatasetError: no episode is as long as `slice_len`, or `batch_size` is not a multiple of it.
        """
        from .replay import replay_buffer

        rows, start = self.rows_of(task), self.table.observation_dim
        return replay_buffer(
            rows.rows[:, : rows.spec.observation_dim],
            rows.rows[:, start : start + rows.spec.action_dim],
            rows.rows[:, -1],
            offsets=rows.offsets,
            terminated=rows.terminated,
            held_out=rows.held_out(held_out),
            slice_len=slice_len,
            batch_size=batch_size,
        )

    @classmethod
    def from_replay_buffer(
        cls,
        buffer: ReplayBuffer,
        folder: str | Path,
        *,
        name: str,
        behaviour: Behaviour = "replay",
        window: int = 5,
        **fields: Any,
    ) -> TaskStore:
        """Pack a TorchRL replay buffer as the store of one task, which `inputs.store=FOLDER` gives to a run.

        Args:
            buffer: of transitions: observation, action, next: observation, reward, done, and terminated or truncated.
                Episodes end at next/done, where collector/traj_ids changes, and where the rows do not join. Rows that
                are False in collector/mask are left out.
            folder: of the store; must not exist.
            name: of the task, for example `lab/arm`.
            behaviour: how the data was collected.
            window: training-window length in steps that will be drawn.
            fields: of TaskSpec, `environment` (a Gymnasium id, MODULE:ID or a task) and `action_low`, `action_high`.
        Raises:
            DatasetError: the folder exists, or the buffer cannot be packed.
            TaskError: the environment cannot be built, or is not one that the data was recorded in.
        """
        from .formats.torchrl import buffer_reader
        from .validate import Findings, validate

        folder = user_path(folder)
        if folder.exists():
            raise DatasetError(f"{folder}: exists; give the folder of a new store")
        reader = buffer_reader(buffer, name=name, behaviour=behaviour, overrides=fields)
        task, partial = reader.task, unfinished(folder)
        shutil.rmtree(partial, ignore_errors=True)
        findings = Findings(warnings=list(reader.warnings))
        episodes = validate(reader, task, window, findings, reader.source["columns"])
        writer = TaskWriter(partial / task.slug, task, task.observation_dim, task.action_dim)
        summary = writer.write(episodes, behaviour=behaviour, source=reader.source, findings=findings)
        finish_store(partial, TaskTable([task]))
        text = f"{counted(summary.transitions, 'transition')} of 1 task"
        finish(partial, kind="store", stage="pack", key="", config={}, inputs={}, seconds=0.0, summary=text)
        publish(partial, folder)
        return cls.open(folder)

    def load(self, device: str | torch.device = "cpu") -> TaskStore:
        """Return a store with the same rows as one tensor in the memory of `device`, so that a batch is one gather."""
        import torch

        shape = sum(len(task.rows) for task in self.tasks), self.tasks[0].rows.shape[1]
        on_cpu = torch.device(device).type == "cpu"
        # numpy asks Linux for huge pages, with which gathering random windows takes 0.7 of the time.
        rows = torch.from_numpy(np.empty(shape, np.float32)) if on_cpu else torch.empty(shape, device=device)
        parts = rows.split([len(task.rows) for task in self.tasks])
        for task, part in zip(self.tasks, parts, strict=True):
            part.copy_(task.rows)
        tasks = [dataclasses.replace(task, rows=part) for task, part in zip(self.tasks, parts, strict=True)]
        return TaskStore(self.folder, self.table, tasks, rows)

    @classmethod
    def open(cls, folder: str | Path) -> TaskStore:
        """Open the store at `folder`.

        Raises:
            DatasetError: the folder is not a store, has another format, or a row file has the wrong size.
        """
        folder = user_path(folder)
        path = folder / STORE_FILE
        if not path.is_file() or not (folder / "tasks.json").is_file():
            raise DatasetError(
                f"{folder} is not a packed store: expected store.json and tasks.json in it. "
                "Pack datasets with the stage `pack` of a run, and give its folder RUN/pack"
            )
        with reading(path, DatasetError, "restore the file, or pack again"):
            described = read_json(path, DatasetError, "restore the file, or pack again")
            if described.get("format") != FORMAT:
                raise DatasetError(
                    f"{path}: format {described.get('format')!r}, this version reads {FORMAT}; pack again"
                )
            summaries = decode(_StoreRecord, described).tasks
        table = read_table(folder)
        if (listed := [summary.task for summary in summaries]) != list(table.names):
            raise DatasetError(f"{path} describes the tasks {listed}, tasks.json {list(table.names)}; pack again")
        tasks = [
            _map_task(folder / spec.slug, spec, summary, table) for spec, summary in zip(table, summaries, strict=True)
        ]
        return cls(folder, table, tasks)


@dataclass(frozen=True)
class _StoreRecord:
    """The part of store.json that is read."""

    tasks: list[TaskSummary]


def _read_episodes(path: Path, summary: TaskSummary) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read offsets, terminated and returns of the episodes.

    Raises:
        DatasetError: they differ from what `TaskWriter` writes, or from the counts in store.json.
    """
    remedy = "restore the file, or pack again"
    with reading(path, DatasetError, remedy):
        arrays = read_npz(path, DatasetError)
        offsets, terminated, returns = (arrays[name] for name in ("offsets", "terminated", "returns"))
        episodes = summary.episodes
        expected = {
            "offsets": (offsets, np.int64, episodes + 1),
            "terminated": (terminated, np.bool_, episodes),
            "returns": (returns, np.float64, episodes),
        }
        for name, (array, dtype, count) in expected.items():
            if array.dtype != dtype or array.shape != (count,):
                raise DatasetError(
                    f"{path}: {name} is {array.dtype} {list(array.shape)}, expected {np.dtype(dtype)} [{count}] for "
                    f"the {episodes} episodes of store.json; {remedy}"
                )
        lengths = np.diff(offsets) - 1
        if offsets[0] != 0 or lengths.min() < 1:
            raise DatasetError(f"{path}: offsets must rise from 0 by at least two rows per episode; {remedy}")
        found = {"transitions": int(lengths.sum()), "terminated": int(terminated.sum())}
        for name, count in found.items():
            if count != getattr(summary, name):
                raise DatasetError(
                    f"{path}: holds {count:,} {name}, store.json says {getattr(summary, name):,}; {remedy}"
                )
    return offsets, terminated, returns


def _map_task(folder: Path, spec: TaskSpec, summary: TaskSummary, table: TaskTable) -> TaskRows:
    import torch  # not at the top: packing runs in several processes, which start in a tenth of the time without it

    path = folder / "rows.f32"
    offsets, terminated, returns = _read_episodes(folder / EPISODES_FILE, summary)
    width = table.observation_dim + table.action_dim + 1
    expected = int(offsets[-1]) * width * 4
    found = path.stat().st_size if path.is_file() else 0
    if found != expected:
        raise DatasetError(
            f"{path}: expected {expected} bytes ({int(offsets[-1])} rows of {width} float32), found {found}. "
            "The file was truncated or replaced after packing; pack again"
        )
    # Read-only, of which torch warns: a writable private map of a file larger than memory is refused by the kernel.
    mapped = np.memmap(path, np.float32, mode="r", shape=(int(offsets[-1]), width))
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        rows = torch.from_numpy(mapped)
    return TaskRows(spec, summary, rows, offsets, terminated, returns)
