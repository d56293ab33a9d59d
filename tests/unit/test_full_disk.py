"""What a full disk does: one clear message whatever library meets it, nothing on exit, and a rerun that continues."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from orrery.stages.training.fit import logged_metrics

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "bash", "-ec")


@pytest.fixture
def small_disk(tmp_path: Path):
    """Runs bash lines in a mount namespace of their own, where ./disk is a file system of 256 KiB."""
    (tmp_path / "disk").mkdir()
    mount = "mount -t tmpfs -o size=256k none disk\n"

    def run(lines: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*NAMESPACE, mount + lines], cwd=tmp_path, capture_output=True, text=True, timeout=240)

    try:
        if (tried := run("")).returncode:
            pytest.skip(f"this machine lets no one mount a tmpfs in a namespace: {tried.stderr.strip()}")
    except FileNotFoundError:
        pytest.skip("this machine has no unshare, with which a small file system is mounted")
    return run


WRITERS = """
import logging, sys
from pathlib import Path
import h5py, numpy as np, torch
from orrery.datasets.collect import write_dataset
from orrery.datasets.rollout import EpisodeResult
from orrery.datasets.schema import Episode, TaskSpec
from orrery.pipeline.checkpoint import save_weights
from orrery.pipeline.errors import StageError
from orrery.pipeline.logging import LogFile
from orrery.pipeline.run_folder import disk_errors
from orrery.stages.world_model.config import WorldModelConfig

disk = Path("disk")

def weights(folder):
    save_weights(folder, "model", {"a": torch.zeros(2**18)}, WorldModelConfig())

def checkpoint(folder):
    torch.save({"a": torch.zeros(2**18)}, folder / "last.ckpt")

def array(folder):
    np.zeros(2**18, np.float32).tofile(folder / "rows.f32")

def hdf5(folder):
    with h5py.File(folder / "data.hdf5", "w") as file:
        file["a"] = np.zeros(2**18)

def dataset(folder):
    spec = TaskSpec(name="toy/point", observation_dim=2, action_dim=1, episode_length=50)
    episode = Episode(np.zeros((51, 2), np.float32), np.zeros((50, 1), np.float32), np.zeros(50, np.float32), False)
    results = [EpisodeResult(seed, 0.0, 50, None, None, None, episode) for seed in range(40)]
    write_dataset(folder / "minari", spec, "exploration", results, {})

log = LogFile(disk / "log.txt")
logging.getLogger("toy").addHandler(log)
for write in (weights, checkpoint, array, hdf5, dataset):
    folder = disk / write.__name__
    folder.mkdir()
    try:
        with disk_errors(disk):
            write(folder)
        print(write.__name__, "fits")
    except StageError as error:
        print(write.__name__, error)
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
(disk / "filler").write_bytes(b"0" * (200 * 1024))
logging.getLogger("toy").error("x" * 2**18)
log.close()
print("closed")
"""


def test_every_writer_says_the_same(small_disk, tmp_path: Path) -> None:
    (tmp_path / "writers.py").write_text(WRITERS)
    ended = small_disk(f"exec {sys.executable} writers.py")
    assert (ended.returncode, ended.stderr) == (0, "")
    *lines, last = ended.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["weights", "checkpoint", "array", "hdf5", "dataset"]
    for line in lines:
        assert f"the disk of {tmp_path / 'disk'} is full (No space left on device; 0 MiB free). Free some" in line
    assert last == "closed"


def test_a_run_ends_with_one_line_and_continues(small_disk, tmp_path: Path) -> None:
    orrery = f"{sys.executable} -m orrery.pipeline.cli run quickstart stages=[collect] tasks=[gymnasium/Pendulum-v1]"
    command = f"OMP_NUM_THREADS=1 {orrery} collect.episodes=10 workers=1 run_dir=disk/run"
    ended = small_disk(f"{command} || echo rc $?; mount -o remount,size=8m disk; {command}")
    assert ended.returncode == 0, ended.stderr
    [line] = ended.stderr.splitlines()
    assert line.startswith("error: the disk of ")
    assert "Free some space and rerun the command to continue" in line
    assert "rc 2" in ended.stdout
    assert "4,000 transitions in 20 episodes of 1 task" in ended.stdout


LOG = "epoch,reward_r2/4/a,step,train/total\n0,,4,2.5\n0,0.5,4,\n0,,9,1.5\n"


@pytest.mark.parametrize(
    "first", ["", "epoch,st", LOG.splitlines()[0], LOG.splitlines()[0] + "\n", LOG[:-1], LOG[:-3], LOG + "0,-"]
)
def test_a_log_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path, first: str) -> None:
    for attempt, text in enumerate((first, LOG)):
        (tmp_path / "logs" / f"attempt_{attempt}").mkdir(parents=True)
        (tmp_path / "logs" / f"attempt_{attempt}" / "metrics.csv").write_text(text)
    training, validation = logged_metrics(tmp_path)
    expected = pd.DataFrame({"step": [4, 9], "train/total": [2.5, 1.5]})
    pd.testing.assert_frame_equal(training.reset_index(drop=True), expected)
    assert validation[["step", "horizon", "reward_r2"]].values.tolist() == [[5, 4, 0.5]]
    assert validation.dtypes[["step", "horizon", "reward_r2"]].tolist() == [np.int64, np.int64, np.float64]


def test_logs_without_a_row_are_empty_tables(tmp_path: Path) -> None:
    (tmp_path / "logs" / "attempt_0").mkdir(parents=True)
    (tmp_path / "logs" / "attempt_0" / "metrics.csv").write_text("")
    training, validation = logged_metrics(tmp_path)
    assert list(training) == ["step", "train/total"]
    assert {"step", "task", "horizon", "reward_r2"} <= set(validation)
    assert len(training) == len(validation) == 0
