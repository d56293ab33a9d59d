"""Packing from TorchRL: buffers in memory, dumped buffers and folders of TensorDicts."""

from __future__ import annotations

import warnings

import numpy as np
import orrery
import pytest
import torch
from orrery.datasets.formats.sources import dataset_files, open_reader
from orrery.datasets.schema import TaskSpec
from orrery.pipeline import artifact
from orrery.pipeline.errors import DatasetError, TaskError
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, ListStorage, ReplayBuffer, TensorDictReplayBuffer

from .stores import numbered_episode, write_store

with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of TorchRL, about itself
    from torchrl.collectors import Collector


def episode(number: int, length: int, *, terminated: bool = False, start: int = 0) -> TensorDict:
    """Steps `start` to `length` of an episode whose state at step t is (number, t), as a collector writes them."""
    t = torch.arange(start, length)
    last = (t == length - 1)[:, None]

    def state(steps: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.full_like(steps, number), steps], 1).float()

    return TensorDict(
        {
            "observation": state(t),
            "action": (t[:, None] + 1) / 10,
            "collector": {"traj_ids": torch.full_like(t, number)},
            "next": {
                "observation": state(t + 1),
                "reward": t[:, None].float(),
                "done": last,
                "terminated": last & terminated,
                "truncated": last & (not terminated),
            },
        },
        batch_size=[length - start],
    )


def filled(storage, *parts: TensorDict) -> ReplayBuffer:
    buffer = TensorDictReplayBuffer(storage=storage, batch_size=4)
    for part in parts:
        buffer.extend(part)
    return buffer


def described(reader) -> list[tuple[int, int, int, bool]]:
    """(number, first step, transitions, terminated) of each episode, after checking its rows."""
    found = []
    for one in reader:
        start = int(one.observations[0, 1])
        np.testing.assert_array_equal(one.observations[:, 1], start + np.arange(len(one) + 1))
        np.testing.assert_array_equal(one.rewards, start + np.arange(len(one)))
        assert len(set(one.observations[:, 0])) == 1
        found.append((int(one.observations[0, 0]), start, len(one), one.terminated))
    return found


@pytest.mark.parametrize("storage", [LazyMemmapStorage, LazyTensorStorage])
def test_a_dumped_buffer_that_is_full_starts_with_its_oldest_row(storage, tmp_path):
    lengths = ((0, 6, False), (1, 5, True), (2, 5, False), (3, 4, False))
    buffer = filled(storage(14), *(episode(number, length, terminated=end) for number, length, end in lengths))
    buffer.dumps(tmp_path / "buffer")
    reader = open_reader(tmp_path / "buffer")
    assert described(reader) == [(1, 0, 5, True), (2, 0, 5, False), (3, 0, 4, False)]
    assert (reader.name, reader.source["columns"]) == ("torchrl/buffer", ["observation[0]", "observation[1]"])
    assert reader.warnings == []
    assert len(dataset_files(tmp_path / "buffer")) > 8


def test_environments_in_turn_are_brought_together_and_cut_where_rows_do_not_join(tmp_path):
    whole = [episode(0, 6), episode(1, 5, terminated=True)]
    batches = [part[:3] for part in whole] + [part[3:] for part in whole]
    torch.cat(batches).memmap(tmp_path / "turns")
    assert described(open_reader(tmp_path / "turns")) == [(0, 0, 6, False), (1, 0, 5, True)]
    torch.cat(batches).exclude("collector").memmap(tmp_path / "apart")
    reader = open_reader(tmp_path / "apart")
    assert described(reader) == [(0, 0, 3, False), (1, 0, 3, False), (0, 3, 3, False), (1, 3, 2, True)]
    assert reader.warnings == [
        "2 rows lead to another observation than that of the next row: an episode is cut off there"
    ]


@pytest.mark.parametrize("storage", [LazyMemmapStorage, LazyTensorStorage, ListStorage])
def test_a_buffer_becomes_a_store(storage, tmp_path):
    parts = [episode(0, 6), episode(1, 5, terminated=True), episode(2, 5)]
    store = orrery.TaskStore.from_replay_buffer(filled(storage(30), *parts), tmp_path / "store", name="lab/arm")
    (rows,) = store.tasks
    assert (rows.spec.name, rows.summary.behaviour, rows.lengths.tolist()) == ("lab/arm", "replay", [6, 5, 5])
    assert rows.terminated.tolist() == [False, True, False]
    artifact.verify(tmp_path / "store", "store")
    with pytest.raises(DatasetError, match="store: exists"):
        orrery.TaskStore.from_replay_buffer(filled(storage(30), *parts), tmp_path / "store", name="lab/arm")


def test_a_store_becomes_a_buffer_and_the_same_store_again(tmp_path):
    task = TaskSpec("lab/arm", 3, 1, 20, terminates=True)
    lengths, ends = (6, 5, 9, 7), (False, True, True, False)
    written = [
        numbered_episode(task, e, length, terminated=end)
        for e, (length, end) in enumerate(zip(lengths, ends, strict=True))
    ]
    first = write_store(tmp_path / "first", [(task, written)])
    buffer = first.replay_buffer("lab/arm")
    scale = {"action_low": [-1], "action_high": [1]}
    again = orrery.TaskStore.from_replay_buffer(buffer, tmp_path / "again", name="lab/arm", **scale)
    before, after = first.rows_of("lab/arm"), again.rows_of("lab/arm")
    assert after.lengths.tolist() == list(lengths)
    assert after.terminated.tolist() == list(ends)
    torch.testing.assert_close(after.rows, before.rows)
    assert after.summary.findings["warnings"] == []


def test_padding_is_left_out(tmp_path):
    parts = [episode(0, 6), episode(1, 4, terminated=True)]
    padded = torch.cat([parts[0], parts[1], torch.zeros_like(parts[0][:2])])
    padded["collector", "mask"] = torch.arange(12) < 10
    padded.memmap(tmp_path / "padded")
    assert described(open_reader(tmp_path / "padded")) == [(0, 0, 6, False), (1, 0, 4, True)]
    padded.set(("collector", "mask"), torch.zeros(12, dtype=torch.bool)).memmap(tmp_path / "none")
    with pytest.raises(DatasetError, match="collector/mask leaves out all 12 rows"):
        open_reader(tmp_path / "none")


def test_what_a_collector_wrote_in_an_environment_of_ours(tmp_path):
    environment = orrery.make_env("gymnasium/Pendulum-v1", backend="torchrl")
    collector = Collector(environment, frames_per_batch=150, total_frames=450)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(500), batch_size=4)
    for batch in collector:
        buffer.extend(batch.reshape(-1))
    collector.shutdown()
    given = {"name": "gymnasium/Pendulum-v1", "environment": "Pendulum-v1", "action_low": [-1], "action_high": [1]}
    store = orrery.TaskStore.from_replay_buffer(buffer, tmp_path / "store", **given)
    assert store.tasks[0].lengths.tolist() == [200, 200, 50]
    with pytest.raises(TaskError, match="observations of 4 numbers"):
        orrery.TaskStore.from_replay_buffer(buffer, tmp_path / "other", name="a/b", environment="CartPole-v1")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (episode(0, 5).exclude("next"), "no next/reward and no next/done in the replay buffer, which has observation"),
        (episode(0, 5).exclude(("next", "done")), "no next/done in the replay buffer"),
        (episode(0, 40)[torch.randperm(40)], r"\d+ of 40 rows are not followed by the state that they lead to"),
        (episode(0, 5).exclude(("next", "observation")), "no state column: next has reward, done"),
    ],
)
def test_other_buffers_are_refused(data, message, tmp_path):
    buffer = filled(LazyTensorStorage(50), data)
    with pytest.raises(DatasetError, match=f"replay buffer: {message}"):
        orrery.TaskStore.from_replay_buffer(buffer, tmp_path / "store", name="lab/arm")
    buffer.dumps(tmp_path / "buffer")
    with pytest.raises(DatasetError, match=f"buffer: {message}"):
        open_reader(tmp_path / "buffer")
    assert not (tmp_path / "store").exists()


def test_empty_buffers_tensors_and_other_shapes_are_refused(tmp_path):
    def pack(buffer):
        return orrery.TaskStore.from_replay_buffer(buffer, tmp_path / "store", name="lab/arm")

    with pytest.raises(DatasetError, match="the replay buffer is empty"):
        pack(TensorDictReplayBuffer(storage=LazyTensorStorage(5), batch_size=4))
    tensors = ReplayBuffer(storage=LazyTensorStorage(5), batch_size=4)
    tensors.extend(torch.zeros(5, 2))
    with pytest.raises(DatasetError, match="holds a Tensor; expected observation, action, and next"):
        pack(tensors)
    torch.stack([episode(0, 5), episode(1, 5)]).contiguous().memmap(tmp_path / "grid")
    with pytest.raises(DatasetError, match=r"has the batch size \[2, 5\]; expected one dimension.*reshape\(-1\)"):
        open_reader(tmp_path / "grid")
    (tmp_path / "grid" / "meta.json").write_text("{}")
    with pytest.raises(DatasetError, match="describes a None; expected a TensorDict"):
        open_reader(tmp_path / "grid")
