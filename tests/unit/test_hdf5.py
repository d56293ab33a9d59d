"""Hdf5Reader: columns and column maps, and what it says of bad files."""

import os
import shutil
import subprocess
import sys

import gymnasium
import h5py
import numpy as np
import pytest
from orrery.datasets.formats.columns import ColumnMap
from orrery.datasets.formats.hdf5 import Hdf5Reader
from orrery.datasets.formats.sources import open_reader
from orrery.pipeline.errors import DatasetError

from .hdf5_files import ENDS_AT, demos, flat_columns, lengths_and_ends, write


@pytest.mark.parametrize(
    ("names", "given", "last", "said"),
    [
        (("observations", "next_observations"), {}, 11.5, None),
        (("state/pose", "next_state/pose"), {}, 11.5, None),
        (("state/pose", "state/next_pose"), {}, 11.5, None),
        (("angles", "next_angles"), {}, 11.5, None),
        (("angles", "next_observations"), {}, 11, "'next_observations' is not read"),
        (("angles", "next_observations"), {"next_observation": "next_observations"}, 11.5, None),
        (("observations", "next_observations"), {"next_observation": []}, 11, None),
    ],
)
def test_a_map_that_names_no_next_observation_takes_those_named_alike(tmp_path, names, given, last, said):
    values = flat_columns()
    values[names[0]], values[names[1]] = values.pop("observations"), values.pop("next_observations")
    columns = {"observation": names[0], "terminated": "terminals", "truncated": "timeouts", **given}
    reader = Hdf5Reader(write(tmp_path / "a.hdf5", values), columns=columns)
    _, second = reader
    assert second.observations[-1, 0] == last
    assert len(second) == (5 if last == 11.5 else 4)
    assert [said in warning for warning in reader.warnings] == ([True] if said else [])


def test_one_group_per_episode_is_read_in_the_order_of_its_numbers(tmp_path):
    reader = Hdf5Reader(write(tmp_path / "lift.hdf5", demos()))
    episodes = list(reader)
    assert [len(e) for e in episodes] == list(range(3, 14)), "demo_10 comes after demo_9"
    assert reader.source["columns"] == ["obs/a_grip[0]", "obs/b_pose[0]", "obs/b_pose[1]"]
    np.testing.assert_array_equal(episodes[0].observations, [[0, 0, 1], [1, 1, 2], [2, 2, 3], [3, 3, 4]])
    assert all(e.terminated for e in episodes)
    assert episodes[10].label == f"{tmp_path / 'lift.hdf5'}:data/demo_10"


MAP = """
observation: [state/joint, state/tool]
action: command
reward: score
truncated: cut
success: solved
"""


@pytest.fixture
def own_names(tmp_path):
    columns = {
        "state/joint": np.arange(8.0).reshape(4, 2),
        "state/tool": np.arange(4.0),
        "state/unused": np.zeros(4),
        "command": np.array([[2.0], [-8.0], [4.0], [0.0]]),
        "score": np.ones(4),
        "cut": [0, 0, 0, 1],
        "solved": [0, 0, 1, 1],
    }
    return write(tmp_path / "own.hdf5", columns)


class Arm(gymnasium.Env):
    """Takes actions without bounds; three observation columns."""

    observation_space = gymnasium.spaces.Box(-9, 9, (3,))
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))

    def reset(self, *, seed=None, options=None):
        return np.zeros(3, np.float32), {}

    def step(self, action):
        return np.zeros(3, np.float32), 0.0, False, False, {}


gymnasium.register("Own-v0", Arm)


def test_a_column_map_in_yaml_names_anything_else(own_names, tmp_path):
    (tmp_path / "map.yaml").write_text(MAP)
    settings = {"episode_length": 50, "environment": {"kind": "gymnasium", "id": "Own-v0"}, "score_random": -1.0}
    reader = open_reader(
        own_names, columns=tmp_path / "map.yaml", name="own/arm", behaviour="expert", overrides=settings
    )
    (episode,) = reader
    np.testing.assert_array_equal(episode.observations, [[0, 1, 0], [2, 3, 1], [4, 5, 2], [6, 7, 3]])
    np.testing.assert_array_equal(episode.actions[:, 0], [0.25, -1, 0.5])
    np.testing.assert_array_equal(episode.success, [False, False, True])
    assert (reader.task.name, reader.behaviour, reader.task.episode_length) == ("own/arm", "expert", 50)
    assert reader.task.environment == {
        "kind": "gymnasium",
        "id": "Own-v0",
        "action_low": [-8.0],
        "action_high": [8.0],
    }


@pytest.mark.parametrize("frames", [np.zeros((12, 16, 16), np.uint8), np.zeros((12, 4, 4, 3))])
def test_frames_are_refused(frames, tmp_path):
    with pytest.raises(DatasetError, match=r"'observations' has shape \(12, .*looks like images"):
        Hdf5Reader(write(tmp_path / "a.h5", flat_columns(observations=frames, next_observations=None)))


def test_parts_of_a_suite_come_in_its_order(tmp_path):
    """Groups of an HDF5 file are sorted by name; dm_control's walker lists orientations, height, velocity."""
    sizes = {"height": 1, "orientations": 14, "velocity": 9}
    columns = {f"observations/{name}": np.full((12, size), float(size)) for name, size in sizes.items()}
    file = flat_columns(observations=None, next_observations=None, actions=np.zeros((12, 6)), **columns)
    reader = Hdf5Reader(write(tmp_path / "walker.h5", file), overrides={"environment": "dmc/walker-run"})
    np.testing.assert_array_equal(next(iter(reader)).observations[0], [14.0] * 14 + [1.0] + [9.0] * 9)
    assert (reader.task.episode_length, reader.task.action_repeat) == (500, 2)
    assert "are reordered to match the environment" in reader.warnings[0]


def test_a_column_map_that_fits_nothing_says_what_is_there(own_names, tmp_path):
    (tmp_path / "map.yaml").write_text(MAP.replace("score", "scores"))
    with pytest.raises(DatasetError, match=r"no reward column 'scores' in /, which has command, cut, score, "):
        Hdf5Reader(own_names, columns=tmp_path / "map.yaml")
    with pytest.raises(DatasetError, match="unknown key 'rewards', nearest is 'reward'"):
        ColumnMap.load({"rewards": "score"})
    with pytest.raises(DatasetError, match=r"absent\.yaml: expected a file, found nothing"):
        Hdf5Reader(own_names, columns=tmp_path / "absent.yaml")
    with pytest.raises(DatasetError, match=r"no group matches episode_group 'demo_\*'"):
        Hdf5Reader(own_names, columns={"episode_group": "demo_*"})


def test_whole_number_actions_are_choices(tmp_path):
    choices = np.array([0, 1, 2, 1, 0, 0, 2, 1, 1, 0, 0, 2])
    reader = Hdf5Reader(write(tmp_path / "a.h5", flat_columns(actions=choices)))
    assert (reader.task.action_kind, reader.task.action_dim) == ("discrete", 3)
    np.testing.assert_array_equal(next(iter(reader)).actions, np.eye(3)[choices[:ENDS_AT]])
    more = Hdf5Reader(tmp_path / "a.h5", overrides={"action_dim": 5})
    assert next(iter(more)).actions.shape == (7, 5)
    with pytest.raises(
        DatasetError, match=r"discrete actions are numbered 0\.\.2, expected 0\.\.1; set pack.*choices=3"
    ):
        Hdf5Reader(tmp_path / "a.h5", overrides={"action_dim": 2})


def test_a_flag_as_action_is_a_choice_of_two(tmp_path):
    pressed = np.arange(12) % 3 == 0
    reader = Hdf5Reader(write(tmp_path / "a.h5", flat_columns(actions=pressed)))
    assert (reader.task.action_kind, reader.task.action_dim) == ("discrete", 2)
    np.testing.assert_array_equal(next(iter(reader)).actions[:, 1], pressed[:ENDS_AT])


def test_only_the_rows_of_one_episode_are_read_at_once(tmp_path, monkeypatch):
    path = write(tmp_path / "a.h5", flat_columns())
    read = []
    original = h5py.Dataset.__getitem__

    def counting(self, rows, *rest):
        read.append((self.name, rows))
        return original(self, rows, *rest)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counting)
    next(iter(Hdf5Reader(path)))
    spans = {(rows.start, rows.stop) for name, rows in read if name in ("/observations", "/rewards")}
    assert (0, ENDS_AT) in spans
    assert max(stop - start for start, stop in spans) == ENDS_AT


def test_a_file_without_rewards_says_so(tmp_path):
    path = write(tmp_path / "a.hdf5", flat_columns(rewards=None))
    with pytest.raises(DatasetError) as raised:
        Hdf5Reader(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: no reward column 'rewards'")
    assert "actions, next_observations, observations, terminals, timeouts" in message
    assert "column map (reward: NAME)" in message


@pytest.mark.parametrize(
    ("column", "value", "found"),
    [
        ("success", np.bool_(True), "one value"),
        ("rewards", 1.0, "one value"),
        ("rewards", np.full(4, b"high"), "text"),
        ("terminals", np.full(4, b"yes"), "text"),
    ],
)
def test_a_column_without_a_number_per_transition_is_named(column, value, found, tmp_path):
    path = write(tmp_path / "a.h5", demos(2) | {f"data/demo_1/{column}": value, f"data/demo_0/{column}": np.zeros(3)})
    with pytest.raises(DatasetError, match=f"data/demo_1: column '{column}' holds {found}") as raised:
        Hdf5Reader(path)
    assert "column map" in str(raised.value)


def test_rewards_beyond_float32_are_left_to_validation(tmp_path):
    rewards = np.where(np.arange(12) == 3, 1e300, 0.0)
    assert next(iter(Hdf5Reader(write(tmp_path / "a.h5", flat_columns(rewards=rewards))))).rewards[3] == np.inf


def test_misaligned_damaged_and_unknown_files_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="'rewards' has 11 rows, 'actions' has 12"):
        Hdf5Reader(write(tmp_path / "a.h5", flat_columns(rewards=np.zeros(11))))
    with pytest.raises(DatasetError, match=r"layout not recognised.*found pictures"):
        Hdf5Reader(write(tmp_path / "b.h5", {"pictures": np.zeros(3)}))
    with pytest.raises(DatasetError, match="which looks like images"):
        Hdf5Reader(write(tmp_path / "c.h5", demos(1, **{"obs/camera": np.zeros((3, 4, 4, 3))})))
    with pytest.raises(DatasetError, match="has no complete transition"):
        Hdf5Reader(write(tmp_path / "d.h5", {key: value[:0] for key, value in flat_columns().items()}))
    whole = write(tmp_path / "e.h5", flat_columns()).read_bytes()
    (tmp_path / "e.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match="cannot be opened as HDF5"):
        Hdf5Reader(tmp_path / "e.h5")
    uneven = demos(2)
    del uneven["data/demo_1/rewards"]
    with pytest.raises(DatasetError, match="data/demo_1: has no column 'rewards', which the first episode has"):
        Hdf5Reader(write(tmp_path / "f.h5", uneven))


def test_a_table_below_data_is_flat(tmp_path):
    columns = {f"data/{key}": value for key, value in flat_columns(terminals=None, timeouts=None).items()}
    path = write(tmp_path / "a.h5", columns | {"meta/episode_ends": [7, 12]})
    assert lengths_and_ends(path) == ([(7, False), (5, False)], [])


def test_groups_beside_the_episodes_are_left_out_by_name(tmp_path):
    path = write(tmp_path / "a.h5", demos(2) | {"data/config/gains": np.ones(3)})
    reader = Hdf5Reader(path)
    assert len(reader) == 2
    assert reader.warnings == ["groups without 'actions' are skipped (1): /data/config"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": np.zeros((12, 2))}, r"column 'rewards' has shape \[12, 2\], 2 numbers per row; expected one"),
        ({"terminals": np.zeros((12, 3))}, r"column 'terminals' has shape \[12, 3\]"),
        ({"success": np.zeros((12, 2), bool)}, r"column 'success' has shape \[12, 2\]"),
        ({"timeouts": np.where(np.arange(12) == 4, np.nan, 0)}, "column 'timeouts' is nan in row 4"),
        ({"ep_len": np.array([b"a", b"b"]), "timeouts": None}, "column 'ep_len' holds text"),
    ],
)
def test_columns_of_the_wrong_form_are_refused(changes, message, tmp_path):
    with pytest.raises(DatasetError, match=message):
        Hdf5Reader(write(tmp_path / "a.h5", flat_columns(**changes)))


def test_flags_of_success_that_are_no_numbers_are_refused(tmp_path):
    path = write(tmp_path / "a.h5", flat_columns(success=np.where(np.arange(12) == 8, np.nan, 1)))
    with pytest.raises(DatasetError, match=r"episode 1 \(from row 7\): 'success' is nan in row 8"):
        list(Hdf5Reader(path))


def test_arrays_by_episode_and_time_are_named(tmp_path):
    columns = {"observations": np.zeros((3, 5, 2)), "actions": np.zeros((3, 5, 1)), "rewards": np.zeros((3, 5))}
    with pytest.raises(DatasetError, match=r"seem to be \[episode, time, \.\.\.\], 3 episodes of 5 steps: write them"):
        Hdf5Reader(write(tmp_path / "a.h5", columns))


def test_a_file_that_may_not_be_read_is_named_with_its_owner(tmp_path):
    path = write(tmp_path / "arm.hdf5", flat_columns())
    path.chmod(0o200)
    script = "import sys; from orrery.datasets.formats.hdf5 import Hdf5Reader; Hdf5Reader(sys.argv[1])"
    command = [sys.executable, "-c", script, str(path)]
    if os.geteuid() == 0:  # whom permissions do not stop, unless it gives up that right
        if shutil.which("setpriv") is None:
            pytest.skip("the tests run as root, and there is no setpriv to give up root's right to any file")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    said = subprocess.run(command, capture_output=True, text=True).stderr.splitlines()[-1]
    assert said.endswith(
        f"DatasetError: {path}: Permission denied. It belongs to {path.owner()}: change its permissions"
    )
