"""Runs side by side, read-only data, other devices, moved artifacts."""

import json
import os
import re
import shutil
import subprocess

import pytest


@pytest.mark.slow
def test_27_commands_side_by_side(run_case, tmp_path) -> None:
    printed = run_case("27-two-commands")
    second = printed["the same run folder twice"]
    # On a fast machine the first may have ended before the second begins; tests/unit/test_runner.py has them overlap.
    assert re.search(r"in use by process \d+ on .*\nrc=2", second) or "nothing to do" in second
    assert "rc=0" in printed["status and plan meanwhile"]  # of the first
    both = printed["two run folders on one store, at once"]
    assert both.count("rc=0") == 2
    assert "same bytes" in both
    third = printed["the store is made anew by another command while a third trains on it"]
    assert third.count("rc=0") == 2
    log = (tmp_path / "27-two-commands" / "work" / "q.txt").read_text()
    folder = tmp_path / "27-two-commands" / "work"
    trained_on = json.loads((folder / "q" / "pretrain" / "manifest.json").read_text())["inputs"]["store"][0]["digest"]
    present = json.loads((folder / "run" / "pack" / "manifest.json").read_text())["digest"]
    assert trained_on == present or "its input changed while it ran" in log


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0,
    reason="no mount namespaces, in which a folder can be made read-only for root",
)
def test_28_read_only_data(run_case) -> None:
    printed = run_case("28-read-only-data")
    assert "Read-only file system" in printed[""]
    for data in ("minari/ro/arm-v0", "work/share/real/arm.hdf5", "work/link.h5", "work/share/link.h5"):
        assert "rc=0" in printed[data], data
    assert "no HDF5 file at work/dangling.hdf5" in printed["work/dangling.hdf5"]
    assert "rc=2" in printed["work/dangling.hdf5"]
    beside = printed["run folder beside the data"]
    assert "cannot write to the run folder" in beside
    assert beside.endswith("rc=2\n")  # what was written beside the data would be listed here
    assert re.search(r"pack +run +.*changed", printed["target of the link replaced by other data: seen?"])


@pytest.mark.slow
def test_29_other_devices(run_case, tmp_path) -> None:
    printed = run_case("29-devices-changed")
    assert "rc=75" in printed[""]
    assert "rerun the command to continue" in printed[""]
    again = printed["run with one device"]
    said = r"pretrain.*pretrain\.trainer\.devices 2 -> 1; the interrupted attempt \(.+\) is kept"
    assert re.search(said, again)
    assert "rc=0" in again
    assert "81 work/run/pretrain/training.csv" in again


@pytest.mark.slow
def test_48_moved_artifacts(run_case) -> None:
    printed = run_case("48-moved-artifacts")
    moved = printed["moved run: continued?"]
    assert "nothing to do" in moved
    assert "rc=0" in moved
    actions = {line.partition("[")[2] for text in printed.values() for line in text.splitlines() if "[-" in line}
    places = [line.split()[0] for text in printed.values() for line in text.splitlines() if "[-" in line]
    assert len(places) == 5
    assert len(actions) == 1
    assert printed["extract from a copied model, without the data"].rstrip().endswith("rc=0")
