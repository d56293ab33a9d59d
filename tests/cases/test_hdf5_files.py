"""HDF5 files by episode, damaged ones, and what is no HDF5: read, or refused in one clear message."""


def refused(printed: str, *parts: str) -> None:
    assert "rc=2" in printed
    assert "Traceback" not in printed
    for part in parts:
        assert part in printed


def test_05_numbered_columns_are_named(run_case) -> None:
    printed = run_case("05-d3rlpy-v2-dump")[""]
    assert "3 episodes" in printed or "episodes           3" in printed
    assert "rc=2" not in printed


def test_07_a_missing_reward(run_case) -> None:
    refused(run_case("07-no-reward")[""], "no reward column", "/data/demo_0", "reward: NAME")


def test_08_a_reward_of_zero(run_case) -> None:
    printed = run_case("08-zero-reward")[""]
    assert "lengths [12, 7, 9] terminated [True, True, True]" in printed
    assert "every reward is zero" in printed
    assert "episodes without a complete transition are skipped: 1" in printed


def test_16_one_file_per_episode(run_case) -> None:
    printed = run_case("16-one-file-per-episode")
    refused(printed["work/aloha"], "is a folder of 3 files (episode_0.hdf5,", "one per task")
    refused(printed["work/aloha/episode_0.hdf5"], "no reward column")
    refused(printed["work/aloha/episode_*.hdf5"], "patterns are not supported")


def test_17_a_file_that_is_being_written(run_case) -> None:
    printed = run_case("17-file-being-written")[""]
    refused(printed, "work/live.hdf5: is open for writing in another process")
    assert "damaged" not in printed


def test_18_a_damaged_chunk_in_any_column(run_case) -> None:
    printed = run_case("18-damaged-chunk")
    for part, column in (("a", "observations"), ("b", "timeouts"), ("c", "actions")):
        refused(printed[part], f"work/{part}.hdf5: column '{column}' cannot be read", "download")


def test_19_what_is_not_hdf5(run_case) -> None:
    printed = run_case("19-not-hdf5")
    refused(printed["hopper"], "work/hopper.hdf5", "not HDF5", "<!DOCTYPE html>")
    refused(printed["empty"], "work/empty.hdf5", "it is empty")
    refused(printed["pointer"], "work/pointer.hdf5", "Git LFS pointer")
    refused(printed["absent"], "no HDF5 file at work/absent.hdf5")


def test_20_other_formats(run_case) -> None:
    printed = run_case("20-other-formats")
    for name, kind in {"pusht.zarr": "a Zarr store", "hopper.pkl": "a pickle"}.items():
        refused(printed[name], f"is {kind}", "expected an HDF5, .npz or .parquet file", "Minari")
    refused(printed["cube-play-v0.npz"], "does not say where its episodes end", "'terminals'")
    refused(printed["pusht"], "work/pusht/data/chunk-000/episode_000000.parquet")
    for name in ("ARM.HDF5", "arm.hdf"):
        assert "rc=0" in printed[name]


def test_42_groups_beside_the_episodes(run_case) -> None:
    printed = run_case("42-raw-demonstrations")
    refused(printed["a"], "no observation column", "actions, states")
    for part, group in (("b", "config"), ("c", "metadata")):
        assert "rc=0" in printed[part]
        assert f"groups without 'actions' are skipped (1): /{group}" in printed[part]
