"""Policies that a real cluster extracts are those of one process, byte for byte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .hosts import Host

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"
ORRERY = [sys.executable, "-m", "orrery.pipeline.cli", "run", str(TINY), "tasks=[gymnasium/Pendulum-v1]"]
JOBS = ["extract.fanout.policies_per_job=1", "extract.fanout.cpus_per_job=1"]


def policies(run_dir: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run_dir)): path.read_bytes()
        for path in sorted((run_dir / "extract").rglob("*"))
        if path.parent.name != "logs" and (path.suffix in (".safetensors", ".csv") or path.name == "policies.json")
    }


@pytest.fixture(scope="session")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    run_dir = tmp_path_factory.mktemp("inline") / "run"
    stages = ["stages=[collect,pack,pretrain,extract]", "pretrain.steps=20"]
    done = subprocess.run(
        [*ORRERY, *stages, *JOBS, f"run_dir={run_dir}"], capture_output=True, text=True, timeout=600, check=False
    )
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
def test_extract_gives_the_same_bytes(
    engine: str, options: list[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    login: Host = request.getfixturevalue(engine).login
    inline = request.getfixturevalue("inline")  # only where there is an engine to compare with
    executor, *others = options
    fanout = [f"extract.fanout.executor={executor}", *(f"extract.fanout.{option}" for option in others)]
    inputs = ["stages=[extract]", f"inputs.world_model={inline}/pretrain", f"inputs.store={inline}/pack"]
    done = login.run(*ORRERY, *inputs, *JOBS, *fanout, f"run_dir={tmp_path}/run", timeout=600)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "run" / "extract.jobs").glob("*/result"))) == 4
    assert policies(tmp_path / "run") == policies(inline)
    assert policies(inline)
