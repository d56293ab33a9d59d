"""HDF5 files with all transitions in one table: where episodes end."""


def test_01_an_unfinished_last_episode_is_kept(run_case) -> None:
    printed = run_case("01-d4rl-v2-flat")[""]
    assert "rc=0" in printed
    assert "lengths [6, 5, 4] terminated [True, False, False]" in printed
