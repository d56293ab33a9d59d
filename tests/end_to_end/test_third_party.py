"""A package outside the repository adds an algorithm, a dataset format and an executor, and an experiment uses them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

PACKAGE = Path(__file__).with_name("third_party")
PENDULUM = "gymnasium/Pendulum-v1"
GAIN = np.array([[0.3], [-0.2], [0.1]])


def install(source: Path, site: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--upgrade"]
    subprocess.run([*pip, "--target", site, source], check=True, capture_output=True)


@pytest.fixture
def environment(tmp_path):
    """With the package installed, in a folder of its own."""
    shutil.copytree(PACKAGE, tmp_path / "source")
    install(tmp_path / "source", tmp_path / "site")
    return {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def write_dataset(path: Path) -> None:
    """Episodes of the pendulum's sizes whose actions are linear in the observations."""
    random = np.random.default_rng(0)
    lines = [{"task": PENDULUM}]
    for _ in range(4):
        observations = random.uniform(-1, 1, (31, 3))
        actions, rewards = observations[:-1] @ GAIN, random.uniform(-1, 0, 30)
        values = {"observations": observations, "actions": actions, "rewards": rewards}
        lines.append({name: value.tolist() for name, value in values.items()} | {"terminated": False})
    path.write_text("\n".join(map(json.dumps, lines)))


def test_a_package_adds_an_algorithm_a_format_and_an_executor(environment, tmp_path) -> None:
    write_dataset(tmp_path / "pendulum.jsonl")
    command = [sys.executable, "-m", "orrery", "run", str(PACKAGE / "linear.yaml"), "run_dir=run"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    scores = pd.read_csv(tmp_path / "run" / "evaluate" / "scores.csv")
    linear = scores[scores.algorithm == "linear"]
    assert list(linear.seed) == [0, 1], "the run's seeds"
    assert linear.return_mean.notna().all()
    store = json.loads((tmp_path / "run" / "pack" / "store.json").read_text())
    assert [task["transitions"] for task in store["tasks"]] == [120]
    statuses = [json.loads(path.read_text()) for path in (tmp_path / "run" / "linear.jobs").glob("*/status.json")]
    assert [(one["executor"], one["state"]) for one in statuses] == [("queue", "done")] * 2
    weights = load_file(tmp_path / "run" / "linear" / "linear" / "lab.pendulum" / "seed_0" / "policy.safetensors")
    assert np.allclose(weights["weight_OA"], [*GAIN, [0]], atol=1e-3), "what made the data"

    # A new version of the package: what it had a part in is made again.
    project = tmp_path / "source" / "pyproject.toml"
    former = next(line for line in project.read_text().splitlines() if line.startswith("version"))
    project.write_text(project.read_text().replace(former, 'version = "9.9"'))
    shutil.rmtree(tmp_path / "site")
    install(tmp_path / "source", tmp_path / "site")
    command = [sys.executable, "-m", "orrery", "plan", str(PACKAGE / "linear.yaml"), "run_dir=run", "--json"]
    planned = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    (first, *_) = json.loads(planned.stdout)["stages"]
    assert first["stage"] == "pack"
    assert "-> 0.1.0, linear-policies 9.9" in first["reason"]
