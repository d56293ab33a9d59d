"""Two ranks of one command, and two commands of two 'nodes', train the same model bit for bit, whatever ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from orrery.pipeline import artifact

from ..unit.stores import point_mass_episodes, point_mass_spec, write_store

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"
SAME = ["model.safetensors", "training.csv", "validation.csv"]
CHECKPOINT = "pretrain.partial/checkpoints/last.ckpt"

# What tells a process which one it is, and what it would be misled by.
OF_TORCHRUN = {"RANK": "{rank}", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
OF_SRUN = {
    "SLURM_PROCID": "{rank}", "SLURM_NODEID": "{rank}", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_NNODES": "2", "MASTER_ADDR": "127.0.0.1",
}  # fmt: skip
OF_SBATCH = {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "pack"
    tasks = [point_mass_spec("toy/a"), point_mass_spec("toy/b", observation_dim=4, action_dim=2)]
    write_store(folder, [(spec, point_mass_episodes(spec, 20, seed)) for seed, spec in enumerate(tasks)])
    artifact.finish(folder, kind="store", stage="pack", key="", config={}, inputs={}, seconds=0, summary="")
    return folder


def start(folder, store, variables, rank, *settings):
    """`orrery run` of the stage pretrain alone."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}
    environment = {**inherited, "OMP_NUM_THREADS": "1", **{k: v.format(rank=rank) for k, v in variables.items()}}
    command = [sys.executable, "-m", "orrery.pipeline.cli", "run", str(TINY), f"run_dir={folder}", "stages=[pretrain]"]
    command += [f"inputs.store={store}", "pretrain.trainer.accelerator=cpu", "pretrain.model.num_q=2", *settings]
    command += ["pretrain.steps=100"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_two(folder, store, variables):
    return [start(folder, store, variables, rank, "pretrain.trainer.nodes=2") for rank in (0, 1)]


def ended(processes):
    """Exit status and errors of each."""
    try:
        errors = [process.communicate(timeout=900)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [process.returncode for process in processes], errors


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    """Two ranks that one command starts, inside of an allocation of SLURM."""
    folder = tmp_path_factory.mktemp("whole")
    codes, errors = ended([start(folder, store, OF_SBATCH, 0, "pretrain.trainer.devices=2")])
    assert codes == [0], errors
    return folder / "pretrain"


@pytest.mark.parametrize(
    ("lost", "how", "codes"),
    [
        (1, signal.SIGKILL, [2, -9]),
        pytest.param(0, signal.SIGKILL, [-9, 2], marks=pytest.mark.slow),
        pytest.param(1, signal.SIGUSR1, [75, 75], marks=pytest.mark.slow),
    ],
)
def test_two_commands_stopped_and_continued_equal_two_ranks_of_one(store, whole, tmp_path, lost, how, codes):
    processes = start_two(tmp_path, store, OF_TORCHRUN)
    deadline = time.monotonic() + 600
    while not (tmp_path / CHECKPOINT).exists() and time.monotonic() < deadline and processes[0].poll() is None:
        time.sleep(0.002)
    processes[lost].send_signal(how)
    found, errors = ended(processes)
    assert found == codes, errors
    if how == signal.SIGKILL:
        assert "lost the connection to another training process" in errors[1 - lost]

    codes, errors = ended(start_two(tmp_path, store, OF_SRUN))
    assert codes == [0, 0], errors
    for name in SAME:
        assert (tmp_path / "pretrain" / name).read_bytes() == (whole / name).read_bytes(), name


def test_two_ranks_end_with_their_command_and_continue_bit_for_bit(store, whole, tmp_path):
    checkpoint = tmp_path / CHECKPOINT

    def begin():
        return start(tmp_path, store, OF_SBATCH, 0, "pretrain.trainer.devices=2")

    def stop(how):
        """Once it has saved a checkpoint, and it alone, as the out-of-memory killer does."""
        former = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = begin()
        deadline = time.monotonic() + 600
        while process.poll() is None and time.monotonic() < deadline:
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns > former:
                break
            time.sleep(0.002)
        ranks = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(how)
        codes, errors = ended([process])
        assert len(ranks) >= 2
        _, left = psutil.wait_procs(ranks, timeout=60)
        assert not left, errors
        return codes

    assert stop(signal.SIGKILL) == [-9]
    assert stop(signal.SIGUSR1) == [75]
    codes, errors = ended([begin()])
    assert codes == [0], errors
    for name in SAME:
        assert (tmp_path / "pretrain" / name).read_bytes() == (whole / name).read_bytes(), name


def test_several_nodes_have_to_be_started(store, tmp_path):
    codes, errors = ended([start(tmp_path, store, {}, 0, "pretrain.trainer.nodes=2", "pretrain.trainer.devices=4")])
    assert codes == [2]
    assert "srun --nodes=2 --ntasks-per-node=4 orrery run" in errors[0].replace("\n", " ")
