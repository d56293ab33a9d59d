"""One training of two hosts, started by torchrun, srun and sbatch: the same model bit for bit, whatever is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from orrery.pipeline import artifact

from ..end_to_end.toy_project import wait_until
from ..unit.stores import point_mass_episodes, point_mass_spec, write_store
from .hosts import Host, ended
from .slurm import Slurm

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"
SAME = ["model.safetensors", "training.csv", "validation.csv"]
NODES = 2


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "pack"
    tasks = [point_mass_spec("toy/a"), point_mass_spec("toy/b", observation_dim=4, action_dim=2)]
    write_store(folder, [(spec, point_mass_episodes(spec, 20, seed)) for seed, spec in enumerate(tasks)])
    artifact.finish(folder, kind="store", stage="pack", key="", config={}, inputs={}, seconds=0, summary="")
    return folder


class Training:
    """`orrery run` of the stage pretrain on two hosts."""

    def __init__(self, store: Path, folder: Path, *settings: str) -> None:
        self.folder = folder
        self.command = [
            "-m", "orrery.pipeline.cli", "run", str(TINY), f"run_dir={folder / 'run'}", "stages=[pretrain]",
            f"inputs.store={store}", "pretrain.trainer.accelerator=cpu", "pretrain.model.num_q=2",
            f"pretrain.trainer.nodes={NODES}", "pretrain.steps=60", *settings,
        ]  # fmt: skip

    def start(self, hosts: list[Host], rank: int) -> subprocess.Popen[bytes]:
        """A rank by torchrun, all of which meet at the first host."""
        torchrun = [
            sys.executable, "-m", "torch.distributed.run", f"--nnodes={NODES}", f"--node-rank={rank}",
            f"--master-addr={hosts[0].name}", "--master-port=29500", "--nproc-per-node=1",
        ]  # fmt: skip
        return hosts[rank].start(*torchrun, *self.command, log=self.folder / f"{rank}.log", OMP_NUM_THREADS="1")

    def log(self, rank: int) -> str:
        return " ".join((self.folder / f"{rank}.log").read_text().split())

    @property
    def checkpoint(self) -> Path:
        return self.folder / "run" / "pretrain.partial" / "checkpoints" / "last.ckpt"

    def result(self) -> dict[str, bytes]:
        return {name: (self.folder / "run" / "pretrain" / name).read_bytes() for name in SAME}


@pytest.fixture(scope="module")
def expected(store: Path, two_hosts: list[Host], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Of a training that nothing happened to."""
    training = Training(store, tmp_path_factory.mktemp("whole"))
    codes = ended([training.start(two_hosts, rank) for rank in range(NODES)], 300)
    assert codes == [0, 0], training.log(0) + training.log(1)
    return training.result()


@pytest.mark.hosts
def test_a_host_that_dies_and_one_that_does_not_come(
    store: Path, expected: dict[str, bytes], two_hosts: list[Host], tmp_path: Path
) -> None:
    hosts = two_hosts
    training = Training(store, tmp_path, "wait_min=1")
    first, _ = (training.start(hosts, rank) for rank in range(NODES))
    wait_until(lambda: training.checkpoint.exists() or first.poll() is not None, 300)
    hosts[1].die()
    try:
        assert ended([first], 180) == [1]  # torchrun's own, whatever a rank ends with
    finally:
        hosts[1].reconnect()
    assert "lost the connection to another training process" in training.log(0)

    # It does not come at all. torchrun would wait for it before it starts the command.
    by_hand = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": hosts[0].name, "OMP_NUM_THREADS": "1"}
    alone = hosts[0].run(sys.executable, *training.command, "wait_min=0.2", **by_hand)
    assert alone.returncode == 2
    assert "pretrain needs 2 processes, but after 0.2 min these are missing: rank 1" in " ".join(alone.stderr.split())

    assert ended([training.start(hosts, rank) for rank in range(NODES)], 300) == [0, 0], training.log(0)
    assert training.result() == expected


@pytest.mark.slurm
@pytest.mark.parametrize("by", ["srun", pytest.param("sbatch", marks=pytest.mark.slow)])
def test_slurm_starts_the_ranks(
    store: Path, expected: dict[str, bytes], cluster: Slurm, tmp_path: Path, by: str
) -> None:
    training = Training(store, tmp_path)
    ranks = ["srun", f"--nodes={NODES}", "--ntasks-per-node=1", "--mem=2000", sys.executable, *training.command]
    if by == "sbatch":
        script = tmp_path / "job.sh"
        quoted = " ".join(f"'{part}'" for part in ranks)
        script.write_text(f"#!/bin/sh\n#SBATCH --nodes={NODES} --mem=2000 --output={tmp_path}/out\n{quoted}\n")
        ranks = ["sbatch", "--wait", str(script)]
    done = cluster.login.run(*ranks, timeout=300, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert training.result() == expected
