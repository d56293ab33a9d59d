"""Hdf5Reader: where episodes end, and which observation is their last."""

import h5py
import numpy as np
import pytest
from orrery.datasets.formats.columns import ColumnMap
from orrery.datasets.formats.hdf5 import Hdf5Reader
from orrery.pipeline.errors import DatasetError

from .hdf5_files import demos, flat_columns, lengths_and_ends, records, write


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
