"""find_ends: where episodes end by each kind of column, alone and together; what contradicts itself is refused."""

import numpy as np
import pytest
from orrery.datasets.formats.episode_ends import END_PARTS, find_ends, look_like_ends, sounds_like_ends
from orrery.pipeline.errors import DatasetError

N = 10


def rows(*set_) -> np.ndarray:
    return np.isin(np.arange(N), set_)


def ends(columns, **settings):
    """The episodes as (first row, row after the last, terminated), and the warnings."""
    values = {key: np.asarray(value) for key, value in columns.items()}
    found = find_ends(values, {key: f"my_{key}" for key in columns}, N, "a.h5", **settings)
    return list(
        zip(found.starts.tolist(), found.stops.tolist(), found.terminated.tolist(), strict=True)
    ), found.warnings


THREE = [(0, 4, False), (4, 7, False), (7, 10, False)]


@pytest.mark.parametrize(
    "columns",
    [
        {"truncated": rows(3, 6, 9)},
        {"truncated": rows(3, 6)},
        {"last": rows(3, 6, 9).astype(np.float32)},
        {"first": rows(0, 4, 7)},
        {"first": rows(4, 7).astype(np.uint8)},
        {"episode": [5, 5, 5, 5, 2, 2, 2, 9, 9, 9]},
        {"lengths": [4, 3, 3]},
        {"lengths": [4, 0, 3, 3]},
        {"starts": [0, 4, 7]},
        {"ends": [4, 7, 10]},
        {"lengths": np.array([4, 3, 3], np.int8), "starts": [0.0, 4.0, 7.0]},
        {"lengths": [4, 3, 3], "terminated": rows()},
        {"ends": [4, 7, 10], "truncated": rows(3)},
        {"not_terminated": np.ones(N), "last": rows(3, 6, 9)},
        {"not_terminated": np.ones(N), "done": rows(3, 6, 9)},
        {"done": rows(3, 6, 9), "truncated": rows(3, 6, 9)},
        {"terminated": rows(3, 6, 9), "truncated": rows(3, 6, 9)},
    ],
)
def test_each_part_says_where_episodes_end(columns):
    assert ends(columns)[0] == THREE


@pytest.mark.parametrize(
    "columns",
    [
        {"terminated": rows(6), "truncated": rows(3, 9)},
        {"terminated": rows(6), "lengths": [4, 6]},
        {"terminated": rows(6), "last": rows(3, 6, 9)},
        {"not_terminated": 1 - rows(6).astype(float), "last": rows(3, 6, 9)},
        {"not_terminated": ~rows(6), "terminated": rows(), "ends": [4, 7, 10]},
        {"done": rows(3, 6, 9), "truncated": rows(3, 9)},
        {"done": rows(3, 6, 9), "terminated": rows(6)},
    ],
)
def test_a_termination_is_told_from_a_cut(columns):
    assert ends(columns)[0] == [(0, 4, False), (4, 7, True), (7, 10, False)]


def test_terminations_that_include_time_limits_lose_them_and_it_is_said():
    found, warnings = ends({"terminated": rows(3, 6, 9), "truncated": rows(3, 9)})
    assert found == [(0, 4, False), (4, 7, True), (7, 10, False)]
    assert warnings == [
        "'my_terminated' marks 2 of the 2 rows that 'my_truncated' marks as truncated: these episodes count as "
        "truncated, not terminated"
    ]


def test_a_termination_that_happens_at_the_limit_stays_one_and_it_is_said():
    found, warnings = ends({"terminated": rows(3), "truncated": rows(3, 6, 9)})
    assert found == [(0, 4, True), (4, 7, False), (7, 10, False)]
    assert "marks 1 of the 3 rows" in warnings[0]
    assert "count as terminated" in warnings[0]


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({}, "no column that marks episode ends"),
        ({"truncated": rows()}, "'my_truncated', never set in 10 rows"),
        ({"terminated": rows(), "truncated": rows()}, "'my_terminated' and 'my_truncated', never set"),
        ({"done": np.zeros(N)}, "'my_done', never set"),
        ({"first": np.zeros(N)}, "'my_first', never set"),
        ({"not_terminated": np.ones(N)}, "'my_not_terminated', never set"),
    ],
)
def test_columns_that_never_mark_an_end_are_refused_unless_a_length_is_given(columns, found):
    with pytest.raises(
        DatasetError, match=rf"^a\.h5: the file does not say where its episodes end: found {found}.*episode_length"
    ):
        ends(columns)
    assert ends(columns, rows_per_episode=4)[0] == [(0, 4, False), (4, 8, False), (8, 10, False)]


def test_terminations_among_marks_of_every_end_stay_terminations():
    found, warnings = ends({"terminated": rows(3, 6), "truncated": rows(3, 6, 9)})
    assert found == [(0, 4, True), (4, 7, True), (7, 10, False)]
    assert "count as terminated" in warnings[0]


def test_the_longest_episode_caps_whatever_the_columns_say():
    columns = {"truncated": rows(6), "terminated": rows(8)}
    assert ends(columns, rows_per_episode=3)[0] == [
        (0, 3, False), (3, 6, False), (6, 7, False), (7, 9, True), (9, 10, False)
    ]  # fmt: skip
    assert ends({"lengths": [10]}, rows_per_episode=10)[0] == [(0, 10, False)]


@pytest.mark.parametrize("columns", [{"terminated": rows(2)}, {"terminated": rows(9)}, {"terminated": rows(2, 4)}])
def test_a_few_terminations_alone_are_warned_of(columns):
    (warning,) = ends(columns)[1]
    assert "only 'my_terminated' ends episodes" in warning
    assert "episode_length" in warning
    assert not ends(columns, rows_per_episode=5)[1]
    assert not ends({**columns, "truncated": rows(6)})[1]


def test_terminations_throughout_are_not_warned_of():
    assert ends({"terminated": rows(1, 3, 5, 7, 9)}) == ([(i, i + 2, True) for i in range(0, N, 2)], [])


def test_a_group_ends_at_its_first_termination_and_at_cuts_within_it():
    columns = {"terminated": rows(2, 3, 9), "truncated": rows(6)}
    found, warnings = ends(columns, group_stops=np.array([4, 4, 10]))
    assert found == [(0, 3, True), (4, 7, False), (7, 10, True)]
    assert warnings == ["1 of 10 rows follow a termination in their group and are dropped"]
    assert ends({}, group_stops=np.array([4, 10]))[0] == [(0, 4, False), (4, 10, False)]
    assert ends({}, group_stops=np.array([4, 10]), rows_per_episode=4)[0] == [
        (0, 4, False),
        (4, 8, False),
        (8, 10, False),
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"truncated": np.where(rows(3), np.nan, 0.0)},
            "column 'my_truncated' is nan in row 3; expected flags, 0 or 1",
        ),
        ({"terminated": np.where(rows(4), np.inf, 0.0)}, "column 'my_terminated' is inf in row 4"),
        ({"not_terminated": np.where(rows(5), np.nan, 1.0)}, "'my_not_terminated' is nan in row 5"),
        ({"first": np.where(rows(5), np.nan, 1.0)}, "'my_first' is nan in row 5"),
        (
            {"lengths": [4, 3, 4]},
            "'my_lengths' does not fit the table.*rows of each episode, which sum to the number of rows, 10",
        ),
        ({"lengths": [4, -3, 9]}, "'my_lengths' has a value that is not a non-negative integer"),
        ({"lengths": [4.5, 5.5]}, "'my_lengths' has a value that is not a non-negative integer"),
        ({"lengths": [np.nan, 5.5]}, "'my_lengths' has a value that is not a non-negative integer"),
        ({"lengths": np.zeros(0)}, "does not fit the table"),
        ({"starts": [1, 4]}, "does not fit the table"),
        ({"starts": [0, 4, 12]}, "does not fit the table"),
        ({"ends": [3, 6, 9]}, "does not fit the table"),
        ({"ends": [7, 4, 10]}, "does not fit the table"),
        ({"episode": [0, 1] * 5}, "episode 0 continues in row 2, after rows of other episodes"),
        ({"lengths": [4, 6], "ends": [5, 10]}, "columns 'my_lengths' and 'my_ends' disagree on episode ends"),
    ],
)
def test_what_contradicts_itself_or_the_table_is_refused(columns, message):
    with pytest.raises(DatasetError, match=rf"^a\.h5: .*{message}"):
        ends(columns)


def test_columns_that_are_not_read_and_mark_other_ends_are_found():
    found = find_ends({"truncated": rows(3, 9)}, {"truncated": "t"}, N, "a.h5")
    unread = {
        "same_ends": rows(3, 9),
        "same_starts": rows(0, 4),
        "never_done": rows(),
        "always_done": rows(*range(N)),
        "other_done": rows(3, 6, 9),
        "other_masks": 1 - rows(3, 6, 9),
        "episode_number": np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2]),
        "same_episodes": np.array([7, 7, 7, 7, 1, 1, 1, 1, 1, 1]),
        "episode_step": np.arange(N),
        "step_that_starts_again": np.array([0, 1, 2, 3, 0, 1, 2, 0, 1, 2]),
        "my_lengths": np.array([4, 3, 3]),
        "other_numbers": np.array([4, 3]),
        "fewer": np.zeros(0),
    }
    assert look_like_ends(unread, found, N) == [
        "other_done",
        "other_masks",
        "episode_number",
        "step_that_starts_again",
        "my_lengths",
    ]


def test_candidates_are_named_where_nothing_marks_ends():
    unread = {"time_limit": rows(3, 9), "episode_step": np.arange(N)}
    with pytest.raises(DatasetError, match=r"unread columns seem to mark ends of episodes: time_limit; if they do"):
        find_ends({}, {}, N, "a.h5", unread=unread)
    warned = find_ends({"truncated": rows(3)}, {"truncated": "t"}, N, "a.h5", unread={"time_limit": rows(6)}).warnings
    assert len(warned) == 1
    assert warned[0].startswith("These unread columns seem to mark ends of episodes: time_limit; ")


def test_a_flag_is_not_negative():
    with pytest.raises(DatasetError, match=r"column 't' is -1 in row 3; expected flags, 0 or 1"):
        find_ends({"truncated": -rows(3).astype(int)}, {"truncated": "t"}, N, "a.h5")


def test_names_that_sound_like_ends():
    for name in [name for part in END_PARTS.values() for name in part.names]:
        assert sounds_like_ends(name), name
    for name in ("env/Traj_Done", "isEpisode_end", "time_limit", "reset"):
        assert sounds_like_ends(name), name
    for name in ("observations", "firstname", "pending", "qpos", "restart_lasting", "depth"):
        assert not sounds_like_ends(name), name
