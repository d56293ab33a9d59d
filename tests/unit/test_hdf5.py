"""Hdf5Reader: where episodes end, which observation is their last, column maps, and what it says of bad files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
from orrery.datasets.formats.columns import ColumnMap
from orrery.datasets.formats.hdf5 import Hdf5Reader
from orrery.datasets.formats.sources import open_reader
from orrery.pipeline.errors import DatasetError

ENDS_AT = 7
"""The first episode of `flat_columns` has rows 0..6; the second the other 5."""


def flat_columns(**changes):
    """Twelve transitions of two episodes, D4RL's names: the first terminates, the second times out.

    Observation t of the file is (t, -t), its next observation (t + 0.5, -t - 0.5), its reward t.
    """
    row = np.arange(12.0)
    columns = {
        "observations": np.stack([row, -row], axis=1),
        "next_observations": np.stack([row + 0.5, -row - 0.5], axis=1),
        "actions": np.stack([row / 20, -row / 20, row * 0], axis=1),
        "rewards": row,
        "terminals": row == ENDS_AT - 1,
        "timeouts": row == 11,
    }
    return {key: value for key, value in (columns | changes).items() if value is not None}


def write(path: Path, columns) -> Path:
    """Write a (nested) dict of arrays as an HDF5 file."""
    with h5py.File(path, "w") as file:
        for key, value in columns.items():
            file[key] = value
    return path


def test_a_flat_file_splits_at_its_flags(tmp_path):
    reader = Hdf5Reader(write(tmp_path / "walker.hdf5", flat_columns()))
    first, second = reader
    assert (len(reader), len(first), len(second)) == (2, 7, 5)
    np.testing.assert_array_equal(first.observations[:, 0], [0, 1, 2, 3, 4, 5, 6, 6.5])
    np.testing.assert_array_equal(second.observations[:, 1], [-7, -8, -9, -10, -11, -11.5])
    np.testing.assert_array_equal(second.rewards, [7, 8, 9, 10, 11])
    np.testing.assert_allclose(first.actions[:, 0], np.arange(7) / 20, rtol=1e-6)
    assert (first.terminated, second.terminated) == (True, False)
    assert {first.observations.dtype, first.actions.dtype, first.rewards.dtype} == {np.dtype(np.float32)}
    task = reader.task
    assert (task.name, task.observation_dim, task.action_dim) == ("hdf5/walker", 2, 3)
    assert (task.episode_length, task.terminates, task.reports_success, dict(task.environment)) == (7, True, False, {})
    assert reader.source["columns"] == ["observations[0]", "observations[1]"]
    assert reader.source["final_observation"] == "stored"
    assert second.label == f"{tmp_path / 'walker.hdf5'}:episode 1 (from row 7)"


def test_without_next_observations_only_a_cut_off_episode_is_shorter(tmp_path):
    reader = Hdf5Reader(write(tmp_path / "old.hdf5", flat_columns(next_observations=None)))
    first, second = reader
    np.testing.assert_array_equal(first.observations[:, 0], [0, 1, 2, 3, 4, 5, 6, 6])
    np.testing.assert_array_equal(first.rewards, np.arange(7))
    np.testing.assert_array_equal(second.observations[:, 0], [7, 8, 9, 10, 11])
    np.testing.assert_array_equal(second.rewards, [7, 8, 9, 10])
    assert (first.terminated, second.terminated) == (True, False)
    assert "lose their last transition" in reader.source["final_observation"]
    cut_off = write(tmp_path / "cut.hdf5", flat_columns(next_observations=None, terminals=None))
    assert "lose their last transition" in Hdf5Reader(cut_off).source["final_observation"]


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


def test_rows_after_the_last_flag_are_an_episode_too(tmp_path):
    lengths = [len(e) for e in Hdf5Reader(write(tmp_path / "a.h5", flat_columns(timeouts=np.zeros(12))))]
    assert lengths == [7, 5]


def test_the_oldest_flat_files_split_after_the_episode_length(tmp_path):
    path = write(tmp_path / "a.hdf5", flat_columns(timeouts=None, terminals=np.arange(12) == 5))
    assert [(len(e), e.terminated) for e in Hdf5Reader(path, overrides={"episode_length": 4})] == [
        (4, False),
        (2, True),
        (4, False),
        (2, False),
    ]


def test_a_file_that_shows_no_ends_is_refused(tmp_path):
    path = write(tmp_path / "a.hdf5", flat_columns(timeouts=None, terminals=np.zeros(12)))
    with pytest.raises(DatasetError, match=r"a\.hdf5: the file does not say where its episodes end.*episode_length"):
        Hdf5Reader(path)


def demos(num: int = 11, **changes):
    columns = {}
    for demo in range(num):
        length = 3 + demo
        row = np.arange(length, dtype=np.float64) + 100 * demo
        parts = {
            "obs/b_pose": row[:, None] + [[0, 1]],
            "obs/a_grip": row,
            "next_obs/b_pose": row[:, None] + [[1, 2]],
            "next_obs/a_grip": row + 1,
            "actions": np.zeros((length, 2)),
            "rewards": row,
            "dones": row == row[-1],
        }
        columns |= {f"data/demo_{demo}/{key}": value for key, value in (parts | changes).items() if value is not None}
    return columns


def test_one_group_per_episode_is_read_in_the_order_of_its_numbers(tmp_path):
    reader = Hdf5Reader(write(tmp_path / "lift.hdf5", demos()))
    episodes = list(reader)
    assert [len(e) for e in episodes] == list(range(3, 14)), "demo_10 comes after demo_9"
    assert reader.source["columns"] == ["obs/a_grip[0]", "obs/b_pose[0]", "obs/b_pose[1]"]
    np.testing.assert_array_equal(episodes[0].observations, [[0, 0, 1], [1, 1, 2], [2, 2, 3], [3, 3, 4]])
    assert all(e.terminated for e in episodes)
    assert episodes[10].label == f"{tmp_path / 'lift.hdf5'}:data/demo_10"


def test_a_group_may_hold_its_final_observation_itself(tmp_path):
    columns = {"traj_0/obs": np.arange(4.0), "traj_0/actions": np.zeros((3, 1)), "traj_0/rewards": np.ones(3)}
    columns["traj_0/success"] = [False, True, False]
    (episode,) = reader = Hdf5Reader(write(tmp_path / "a.h5", columns))
    np.testing.assert_array_equal(episode.observations, [[0], [1], [2], [3]])
    np.testing.assert_array_equal(episode.success, [False, True, False])
    assert not episode.terminated
    assert reader.task.reports_success


def test_a_group_ends_at_its_first_termination(tmp_path):
    path = write(tmp_path / "a.h5", demos(1, dones=[0, 1, 1], **{"next_obs/b_pose": None, "next_obs/a_grip": None}))
    (episode,) = Hdf5Reader(path)
    assert (len(episode), episode.terminated) == (2, True)
    np.testing.assert_array_equal(episode.observations[:, 0], [0, 1, 2]), "the next row is the terminal observation"


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


def lengths_and_ends(path: Path, **settings):
    reader = Hdf5Reader(path, **settings)
    return [(len(e), e.terminated) for e in reader], reader.warnings


@pytest.mark.parametrize(
    "marks",
    [
        {"episode_terminals": np.isin(np.arange(12), [6, 11]), "terminals": np.arange(12) == 6},
        {"ep_len": [7, 5], "ep_offset": [0, 7], "terminated": np.arange(12) == 6},
        {"meta/episode_ends": [7, 12], "terminals": np.arange(12) == 6},
        {"is_first": np.isin(np.arange(12), [0, 7]), "terminals": np.arange(12) == 6},
        {"episode_starts": np.isin(np.arange(12), [0, 7]), "dones": np.arange(12) == 6},
        {"episode_starts": [0, 7], "dones": np.arange(12) == 6},
        {"episode_index": np.arange(12) > 6, "dones": np.arange(12) == 6},
        {"traj_lengths": [7, 5], "dones": np.arange(12) == 6},
        {"dones": np.isin(np.arange(12), [6, 11]), "timeouts": np.arange(12) == 11},
        {"terminals": np.isin(np.arange(12), [6, 11]), "masks": np.arange(12.0) != 6},
    ],
    ids=lambda marks: "+".join(marks),
)
def test_ends_are_found_under_the_names_of_other_formats(marks, tmp_path):
    path = write(tmp_path / "a.h5", flat_columns(terminals=None, timeouts=None) | marks)
    assert lengths_and_ends(path) == ([(7, True), (5, False)], [])


def test_a_table_below_data_is_flat(tmp_path):
    columns = {f"data/{key}": value for key, value in flat_columns(terminals=None, timeouts=None).items()}
    path = write(tmp_path / "a.h5", columns | {"meta/episode_ends": [7, 12]})
    assert lengths_and_ends(path) == ([(7, False), (5, False)], [])


def test_ends_that_are_never_set_are_refused(tmp_path):
    path = write(tmp_path / "a.h5", flat_columns(terminals=np.zeros(12), timeouts=np.zeros(12, bool)))
    with pytest.raises(DatasetError, match="'terminals' and 'timeouts', never set in 12 rows"):
        Hdf5Reader(path)
    assert lengths_and_ends(path, overrides={"episode_length": 6})[0] == [(6, False), (6, False)]


def test_episode_length_caps_marked_episodes_and_groups_too(tmp_path):
    flat = write(tmp_path / "a.h5", flat_columns())
    capped = [(4, False), (3, True), (4, False), (1, False)]
    assert lengths_and_ends(flat, overrides={"episode_length": 4})[0] == capped
    groups = Hdf5Reader(write(tmp_path / "b.h5", demos(2)), overrides={"episode_length": 2})
    assert [(len(e), e.terminated) for e in groups] == [(2, False), (1, True), (2, False), (2, True)]
    assert [e.label.rpartition("/")[2] for e in groups] == [
        "demo_0",
        "demo_0 (from row 2)",
        "demo_1",
        "demo_1 (from row 2)",
    ]


def test_columns_that_are_not_read_and_look_like_ends_are_named(tmp_path):
    path = write(tmp_path / "a.h5", flat_columns(my_traj_done=np.arange(12) % 3 == 2, my_first=np.arange(12) == 7))
    _, (warning,) = lengths_and_ends(path)
    assert "unread columns seem to mark ends of episodes: my_traj_done;" in warning
    assert "last: NAME" in warning
    assert lengths_and_ends(path, columns={"terminated": "my_traj_done"})[0] == [(3, True)] * 4


def test_episodes_without_a_transition_are_counted(tmp_path):
    path = write(tmp_path / "a.h5", flat_columns(next_observations=None, timeouts=np.isin(np.arange(12), [7, 8, 11])))
    assert lengths_and_ends(path) == (
        [(7, True), (2, False)], ["episodes without a complete transition are skipped: 2"]
    )  # fmt: skip


def records(**changes):
    """Dreamer's records: three episodes of four rows, row t with the action and reward that led to observation t."""
    t = np.arange(12)
    columns = {
        "observation": t[:, None] * 1.0,
        "action": np.where(t % 4, t, 0)[:, None] / 20,
        "reward": np.where(t % 4, t, 0) * 1.0,
        "is_first": t % 4 == 0,
        "is_last": t % 4 == 3,
        "is_terminal": t == 7,
        "discount": np.where(t == 7, 0.0, 1.0),
    }
    return {key: value for key, value in (columns | changes).items() if value is not None}


@pytest.mark.parametrize("leave_out", [(), ("is_terminal",), ("is_first", "is_last", "discount")])
def test_records_of_dreamer_are_shifted(leave_out, tmp_path):
    path = write(tmp_path / "a.h5", records(**dict.fromkeys(leave_out)))
    columns = {"observation": "observation", "action": "action", "reward": "reward", "shifted": True}
    explicit = columns | ({"terminated": "is_terminal"} if "is_first" in leave_out else {"last": "is_last"})
    if "is_first" in leave_out:
        explicit |= {"lengths": "length"}
        with h5py.File(path, "r+") as file:
            file["length"] = [4, 4, 4]
    for reader in [Hdf5Reader(path, columns=explicit)] + ([] if "is_first" in leave_out else [Hdf5Reader(path)]):
        episodes = list(reader)
        assert [len(e) for e in episodes] == [3, 3, 3]
        np.testing.assert_array_equal([e.observations[:, 0] for e in episodes], np.arange(12).reshape(3, 4))
        np.testing.assert_array_equal([e.rewards for e in episodes], np.arange(12).reshape(3, 4)[:, 1:])
        np.testing.assert_allclose(episodes[1].actions[:, 0] * 20, [5, 6, 7], rtol=1e-6)
        assert reader.source["final_observation"] == "stored"
    if "is_first" not in leave_out:
        assert [e.terminated for e in episodes] == [False, True, False]
        assert "treated as shifted" in reader.warnings[0]


def test_what_stands_in_front_of_a_shifted_episode_is_no_choice(tmp_path):
    """Dreamer's one-hot actions have a row of zeros there."""
    taken = np.arange(12) % 3
    rows = np.where((np.arange(12) % 4 == 0)[:, None], 0.0, np.eye(3)[taken])
    path = write(tmp_path / "a.h5", records(action=rows))
    reader = Hdf5Reader(path, overrides={"action_kind": "discrete", "action_dim": 3})
    np.testing.assert_array_equal([e.actions.argmax(1) for e in reader], taken.reshape(3, 4)[:, 1:])


def test_records_of_rlds_end_with_their_final_observation(tmp_path):
    t = np.arange(12)
    following = {"action": np.where(t % 4 < 3, t + 1, 0)[:, None] / 20, "reward": np.where(t % 4 < 3, t + 1, 0) * 1.0}
    reader = Hdf5Reader(write(tmp_path / "a.h5", records(**following)))
    episodes = list(reader)
    np.testing.assert_array_equal([e.rewards for e in episodes], np.arange(12).reshape(3, 4)[:, 1:])
    np.testing.assert_array_equal([e.observations[:, 0] for e in episodes], np.arange(12).reshape(3, 4))
    assert [e.terminated for e in episodes] == [False, True, False]
    assert reader.warnings == []


def test_a_map_over_rows_that_look_shifted_is_warned_of(tmp_path):
    path = write(tmp_path / "a.h5", records(reward=np.where(np.arange(12) % 4, 1.0, np.nan)))
    columns = {"observation": "observation", "action": "action", "reward": "reward", "last": "is_last"}
    assert "set shifted: true in a column map" in Hdf5Reader(path, columns=columns).warnings[0]
    with pytest.raises(DatasetError, match="shifted: expected bool, found 'yes'"):
        ColumnMap.load(columns | {"shifted": "yes"})
    with pytest.raises(DatasetError, match="next_observation and shifted exclude each other"):
        ColumnMap.load(columns | {"shifted": True, "next_observation": "observation"})
    with pytest.raises(DatasetError, match="lengths apply to flat files, but with episode_group"):
        ColumnMap.load(columns | {"lengths": "n", "episode_group": "*"})


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
