"""Validation windows of held-out episodes, where these are few or short."""

from __future__ import annotations

import pytest
from orrery.datasets.datamodule import WindowData, WindowSettings
from orrery.datasets.joined import JoinedWindowData, StoreShare
from orrery.datasets.schema import TaskTable
from orrery.datasets.store import TaskStore
from orrery.datasets.windows import WindowSampler

from .stores import numbered_episode, point_mass_spec, write_store


def spec(name):
    return point_mass_spec(name, action_dim=2)


@pytest.fixture
def data(tmp_path):
    """WindowData over a task for each given list of episode lengths, the last of which may be marked `terminated`."""

    def data(*lengths_of_tasks, terminated=False, validation_length=16, horizon=5, name="store"):
        tasks = []
        for k, lengths in enumerate(lengths_of_tasks):
            own = spec(f"toy/{name}_{k}")
            tasks.append((own, [numbered_episode(own, e, length, terminated) for e, length in enumerate(lengths)]))
        store = write_store(tmp_path / name, tasks)
        settings = WindowSettings(horizon, 4, 0, 0.2, validation_length, 2)
        return WindowData(store.folder, settings)

    return data


def test_windows_are_as_long_as_every_task_allows(data):
    batch = data([10] * 10, [50] * 10).validation_windows().batch(0)
    assert batch["action"].shape[1] == 10
    assert set(batch["task"].tolist()) == {0, 1}
    assert data([50] * 10, [40] * 10, name="long").validation_windows().batch(0)["action"].shape[1] == 16


def test_windows_of_terminated_episodes_are_padded_and_shorten_nothing(data):
    batch = data([10] * 10, terminated=True).validation_windows().batch(0)
    assert batch["action"].shape[1] == 16
    assert not batch["valid"].all()


def test_a_task_whose_held_out_episodes_hold_no_training_window_is_left_out(data):
    found = data([3] * 9 + [50], [50] * 10)
    batch = found.validation_windows().batch(0)
    assert (batch["action"].shape[1], set(batch["task"].tolist())) == (16, {1})
    assert not data([3] * 9 + [50], name="short").has_held_out()


@pytest.mark.parametrize("tasks", [1, 2])
def test_a_single_window_is_enough(data, tasks):
    batch = data(*[[16] * 5] * tasks).validation_windows().batch(0)
    assert len(batch) == 1


def test_ranks_share_a_single_held_out_window(data):
    folder = data([16] * 5)._folder
    for rank in (0, 1):
        sampler = WindowSampler(
            TaskStore.open(folder), length=16, batch_size=1, seed=0, rank=rank, world_size=2, split="held_out",
            held_out=0.2,
        )  # fmt: skip
        assert sampler.batch(0)["valid"].all()


def test_a_task_never_takes_more_than_the_batch(tmp_path):
    own = spec("toy/one")
    store = write_store(tmp_path, [(own, [numbered_episode(own, 0, 8)])])
    drawn = WindowSampler(store, length=5, batch_size=4, seed=0).batch(0)
    assert sorted(drawn["observation"][:, 0, 1].tolist()) == [0, 1, 2, 3]


def test_windows_of_several_stores_have_one_length(data):
    parts = [data([10] * 10, name="old"), data([50] * 10, name="new")]
    table = TaskTable([spec("toy/old_0"), spec("toy/new_0")])
    shares = [StoreShare(part._folder, 2) for part in parts]
    batch = JoinedWindowData(shares, table, parts[0]._settings).validation_windows().batch(0)
    assert batch["action"].shape[1] == 10
    assert set(batch["task"].tolist()) == {0, 1}
