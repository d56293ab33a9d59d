"""What a real cluster collects, extracts, learns and evaluates is that of one process, byte for byte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from orrery.pipeline.artifact import read_manifest

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"
NETWORKS = ("latent_dim", "state_action_dim", "action_dim", "encoder_dim", "value_dim", "policy_dim")
ORRERY = [
    sys.executable, "-m", "orrery.pipeline.cli", "run", str(TINY), "tasks=[gymnasium/Pendulum-v1]",
    "stages=[collect,pack,pretrain,extract,mrq,evaluate]", "algorithms=[pwm,mrq]", "collect.episodes=10",
    "pretrain.steps=20", "extract.algorithms=[pwm]", "extract.fanout.policies_per_job=1", "fanout.cpus_per_job=1",
    "mrq.encoder_updates=4", "mrq.updates=8", "mrq.learn.batch_size=16", "mrq.learn.period=4",
    *(f"mrq.learn.networks.{name}=16" for name in NETWORKS),
]  # fmt: skip
JOBS = {"extract": 2, "mrq": 2, "evaluate": 1}  # collect keeps none
STAGES = ("collect", *JOBS)


def contents(run_dir: Path) -> dict[str, str]:
    """Digest of every file that a stage with jobs has made, but for what it cost."""
    manifests = {stage: read_manifest(run_dir / stage) for stage in STAGES}
    return {
        f"{stage}/{path}": record.sha256
        for stage, manifest in manifests.items()
        for path, record in manifest.files.items()
        if path != "logs/costs.csv"
    }


@pytest.fixture(scope="session")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    run_dir = tmp_path_factory.mktemp("inline") / "run"
    done = subprocess.run([*ORRERY, f"run_dir={run_dir}"], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.mark.parametrize(
    ("engine", "options"),
    [
        pytest.param(
            "cluster", ["slurm", "time_limit_min=5", "options.mem_gb=1.5"], id="slurm", marks=pytest.mark.slurm
        ),
        pytest.param("ray_cluster", ["ray", "options.address=10.77.0.1:6379"], id="ray", marks=pytest.mark.ray),
    ],
)
def test_the_bytes_are_those_of_one_process(
    engine: str, options: list[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    host = request.getfixturevalue(engine).login
    inline = request.getfixturevalue("inline")  # only where there is an engine to compare with
    fanout = [f"fanout.{option}" for option in [f"executor={options[0]}", *options[1:]]]
    done = host.run(*ORRERY, *fanout, f"run_dir={tmp_path}/run", timeout=600)
    assert done.returncode == 0, done.stderr
    for stage, jobs in JOBS.items():
        assert len(list((tmp_path / "run" / f"{stage}.jobs").glob("*/result"))) == jobs
    assert contents(tmp_path / "run") == contents(inline)
    assert {path.partition("/")[0] for path in contents(inline)} == set(STAGES)
