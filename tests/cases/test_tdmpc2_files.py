"""TD-MPC2's files as users' own training loops write them."""

import pytest


@pytest.mark.slow
def test_30_prefixes_and_half_precision_are_read(run_case) -> None:
    printed = run_case("30-checkpoint-prefixes")
    titles = ("plain", "bare", "more", "orig_mod", "ddp", "ddp_orig", "inner", "agent", "lightning", "half", "nested")
    assert set(printed) == {"", *titles}
    for title in titles:
        assert f"20,017 parameters, dmc/cartpole-balance, from {title}.pt (new format)" in printed[title], title


def test_36_chunks_of_own_tasks_are_refused_and_lead_to_hdf5(run_case) -> None:
    printed = run_case("36-own-chunks")
    for title in ("term", "plain"):
        said = " ".join(printed[title].split())
        assert said.count("rc=2") == 3, said
        assert "expected obs [rows, 501, 24], action [rows, 501, 6]" in said
        assert "found action [6, 51, 3] float32" in said or "found obs [6, 51, 11] float32" in said
        assert said.count("HDF5 or Minari") == 3
        assert "Traceback" not in said
    assert "terminated [6, 51] float32" in printed["term"]
