"""What is typed: paths with any characters, lists, sweeps, and other habits from Hydra."""

import pytest


def test_09_files_of_the_same_name_are_named_apart_or_refused(run_case) -> None:
    sections = run_case("09-same-file-name")
    assert "rc=2" in sections[""]
    for part in ("work/lift/ph/low_dim_v141.hdf5", "work/can/ph/low_dim_v141.hdf5", "pack.sources.NAME.path"):
        assert part in sections[""]
    assert "starts" not in sections[""], "refused before anything runs"
    assert "== robomimic/lift obs 3" in sections["with names"]
    assert "== robomimic/can obs 4" in sections["with names"]


@pytest.mark.slow
def test_25_paths_with_equals_commas_and_colons(run_case) -> None:
    sections = run_case("25-equals-in-paths")
    path = "work/multirun/lr=0.1,seed=3/2026-11-28_10:30:00/arm=1.hdf5"
    unclear = sections["tasks=[...]"]
    assert "rc=2" in unclear
    assert f"""'tasks=["{path}"]'""" in unclear
    checkpoint = sections["checkpoint with epoch=9-step=100.pt"]
    assert "rc=2" in checkpoint
    assert "work/epoch=9-step=100.pt: is not a file written by torch.save" in checkpoint
    taken = sections.keys() - {"", "tasks=[...]", "checkpoint with epoch=9-step=100.pt"}
    assert len(taken) == 6
    for title in taken:
        assert "rc=0" in sections[title], title


@pytest.mark.slow
def test_26_file_names_of_any_characters(run_case) -> None:
    sections = run_case("26-odd-file-names")
    plain = {title: text for title, text in sections.items() if title.startswith("plain: ")}
    assert len(plain) == 6
    for title, text in plain.items():
        assert "57 transitions" in text, title
        assert "rc=0" in text, title
    assert "rc=0" in sections["quoted"]
    whole = sections["a whole run, with a space and other letters in every path"]
    assert "rc=0" in whole
    assert "report: work/my run ü/report/index.html" in whole
    assert "hdf5.my arm (v2)" in whole
    assert "hdf5.機械腕" in whole


@pytest.mark.slow
def test_46_sweeps_and_lists_are_answered_with_the_right_spelling(run_case) -> None:
    sections = run_case("46-sweeps-and-lists")
    refused = {
        "seed=1,2,3": "orrery study STUDY 'grid.seed=[1,2,3]'",
        "--multirun": "orrery study STUDY 'grid.seed=[0,1,2]'",
        "tasks=work/arm.hdf5": "write tasks=[work/arm.hdf5]",
        "tasks=a,b": "write tasks=[work/arm.hdf5,work/arm2.hdf5]",
        "action_low=-4": "pack.sources.lab/a.action_low=[-4]",
        "setting by the name that the task got": "'hdf5/arm', which is not in tasks: work/arm.hdf5",
        "hydra.run.dir": "run_dir=PATH",
    }
    for title, spelling in refused.items():
        assert "rc=2" in sections[title], title
        assert spelling in sections[title], title
    assert "rc=0" in sections["settings for a file that is named by its path"]
    for title in ("action_low=[-4], one number for two components", "env of the shell"):
        assert "rc=0" in sections[title], title
    touched = sections["touch"]
    assert "[1/2] pack" in touched
    assert "work/arm.hdf5 changed" in touched
    assert "[2/2]" not in touched, "an equal store costs no training"
