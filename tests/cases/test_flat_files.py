"""HDF5 files with all transitions in one table: where episodes end, and which reward follows which action."""

import re

import pytest


def packed(printed: str) -> str:
    """Lengths and terminations as `show.py` prints them."""
    assert "rc=0" in printed
    return re.search(r"lengths .*", printed).group()


def warnings(printed: str) -> str:
    return re.search(r"warnings: (.*) notes:", printed).group(1)


def test_01_an_unfinished_last_episode_is_kept(run_case) -> None:
    printed = run_case("01-d4rl-v2-flat")[""]
    assert "rc=0" in printed
    assert "lengths [6, 5, 4] terminated [True, False, False]" in printed


def test_03_episodes_of_one_row_are_counted(run_case) -> None:
    printed = run_case("03-length-one-trajectories")[""]
    assert packed(printed) == "lengths [6, 8] terminated [False, False]"
    assert "episodes without a complete transition are skipped: 4" in warnings(printed)
    assert "rew [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]" in printed


def test_04_episode_terminals_are_ends(run_case) -> None:
    for printed in run_case("04-episode-terminals").values():
        if printed:
            assert packed(printed) == "lengths [3, 4, 5, 5] terminated [False, True, False, False]"


def test_06_dones_that_include_time_limits(run_case) -> None:
    printed = run_case("06-done-and-timeout")[""]
    assert packed(printed) == "lengths [8, 5, 3, 8] terminated [False, True, False, False]"


def test_11_ogbench_says_in_masks_what_terminates(run_case) -> None:
    printed = run_case("11-ogbench-terminals")
    for part in ("", "with a map"):
        assert packed(printed[part]) == "lengths [10, 10, 10, 10] terminated [False, False, False, False]"


def test_38_lengths_of_episodes_are_ends(run_case) -> None:
    printed = run_case("38-ep-len-layout")
    assert packed(printed["plain"]) == "lengths [5, 8, 4] terminated [False, False, False]"
    assert packed(printed["done"]) == "lengths [6, 8, 4] terminated [True, False, False]"


def test_39_one_stray_terminal_is_warned_of(run_case) -> None:
    printed = run_case("39-one-stray-terminal")[""]
    without, given = printed.split("lengths [2500, 3499]")
    assert "only 'terminals' ends episodes, in 1 of 6,000 rows" in without
    assert "Set episode_length" in without
    assert packed(given) == (
        "lengths [999, 999, 500, 999, 999, 999, 499] terminated [False, False, True, False, False, False, False]"
    )
    assert "terminals" not in warnings(given)
    assert "Set episode_length" not in warnings(given)


def test_47_rows_that_are_shifted(run_case, tmp_path) -> None:
    printed = run_case("47-shifted-rows")
    assert "treated as shifted" in printed["as it is"]
    assert "40 transitions of 1 task" in printed["as it is"]
    assert "set shifted: true in a column map" in printed["map"]


@pytest.mark.slow
def test_43_many_short_episodes_cost_no_more_than_twice_as_much_compressed(run_case) -> None:
    # The output of bash's `time`: real, user and sys of the uncompressed file, then of the compressed one.
    printed = run_case("43-many-short-episodes", ROWS="200000")[""]
    assert printed.count("rc=0") == 2
    plain, compressed = (
        int(minutes) * 60 + float(seconds) for minutes, seconds in re.findall(r"user\s+(\d+)m([\d.]+)s", printed)
    )
    assert compressed < 2 * plain
