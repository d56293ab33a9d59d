"""What `pack.sources` says of a dataset reaches the store."""

from __future__ import annotations

import logging

import h5py
import numpy as np
import pytest
from orrery.datasets.store import TaskStore
from orrery.pipeline.errors import ConfigError, DatasetError
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.stage import Context
from orrery.stages.pack import Pack, PackConfig, SourceConfig
from rich.console import Console


@pytest.fixture
def packed(tmp_path):
    """Packs one HDF5 file of two episodes of three transitions, with the settings given, and opens the store."""

    def packed(actions, **settings):
        path = tmp_path / "own.hdf5"
        with h5py.File(path, "w") as file:
            file["observations"] = np.arange(12.0).reshape(6, 2)
            file["next_observations"] = np.arange(12.0).reshape(6, 2) + 1
            file["actions"] = actions
            file["rewards"] = np.ones(6)
            file["timeouts"] = np.arange(6) % 3 == 2
        out = tmp_path / "store"
        out.mkdir(exist_ok=True)
        stage = Pack(PackConfig(window=2, sources={"lab/arm": SourceConfig(path=str(path), **settings)}))
        stage.check()
        progress = ConsoleProgress(Console(quiet=True))
        stage.run(Context(out, {"datasets": ()}, 1, 1, logging.getLogger("test"), progress))
        return TaskStore.open(out)

    return packed


def test_native_bounds_scale_the_actions_and_are_kept_for_the_environment(packed):
    torques = np.linspace(-2, 4, 12).reshape(6, 2)
    store = packed(torques, action_low=[-4.0], action_high=[4.0, 8.0], environment="Arm-v0", score_random=0.0)
    found = store.tasks[0].rows[:, 2:4].numpy().reshape(2, 4, 2)[:, :3].reshape(6, 2)
    np.testing.assert_allclose(found, (torques - [0, 2]) / [4, 6], atol=1e-6)
    assert store.table[0].environment == {
        "kind": "gymnasium", "id": "Arm-v0", "action_low": [-4.0, -4.0], "action_high": [4.0, 8.0]
    }  # fmt: skip
    assert store.table[0].score_random == 0


def test_choices_may_be_more_than_the_data_shows_and_stored_as_floats(packed):
    store = packed(np.array([0.0, 1, 0, 1, 0, 0]), choices=4)
    assert (store.table[0].action_kind, store.table[0].action_dim) == ("discrete", 4)
    np.testing.assert_array_equal(store.tasks[0].rows[1, 2:6], [0, 1, 0, 0])


def test_bounds_and_choices_that_cannot_be_meant(packed):
    with pytest.raises(ConfigError, match=r"pack\.sources\.lab/arm: action_low and action_high are given together"):
        packed(np.zeros((6, 2)), action_low=[-1.0])
    with pytest.raises(ConfigError, match=r"pack\.sources\.lab/arm: choices is for discrete actions"):
        packed(np.zeros((6, 2)), action_low=[-1.0], action_high=[1.0], choices=2)
    with pytest.raises(ConfigError, match=r"pack\.sources\.lab/arm\.choices must not be negative"):
        packed(np.zeros((6, 2)), choices=-2)
    with pytest.raises(DatasetError, match="2 numbers, one per component"):
        packed(np.zeros((6, 2)), action_low=[-1.0, 0, 1], action_high=[1.0])


def test_two_files_of_the_same_name_are_refused_with_both_paths(tmp_path):
    """robomimic#115: every task's file is called low_dim_v141.hdf5."""
    paths = [tmp_path / task / "low_dim.hdf5" for task in ("lift", "can")]
    for path in paths:
        path.parent.mkdir()
        with h5py.File(path, "w") as file:
            file["observations"] = np.zeros((6, 2))
            file["actions"] = np.linspace(-1, 1, 6)[:, None]
            file["rewards"] = np.ones(6)
            file["timeouts"] = np.arange(6) % 3 == 2
    with pytest.raises(ConfigError, match=r"lift/low_dim.*can/low_dim.*task 'hdf5/low_dim'.*pack\.sources\.NAME\.path"):
        Pack(PackConfig(window=2, tasks=[str(path) for path in paths])).check()
