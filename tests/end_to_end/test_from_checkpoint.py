"""A model from the Hub and nothing else: policies for a task of it, evaluated and reported, as a user runs it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from orrery.datasets.schema import TaskTable
from orrery.datasets.tasks import task_spec
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.networks import WorldModel

from ..unit.fake_hub import FakeHub

TASKS = ("gymnasium/Pendulum-v1", "gymnasium/CartPole-v1")
SMALL = (
    "seeds=1", "workers=1", "threads=1", "extract.iterations=4", "extract.groups=1", "starts.episodes=2",
    "evaluate.episodes=1", "extract.first_order.horizon=2", "extract.first_order.batch_size=8",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = WorldModelConfig(latent_dim=16, encoder_dim=16, mlp_dim=16, task_dim=4)
    WorldModel(config, TaskTable([task_spec(name) for name in TASKS])).save(folder)
    return folder


def orrery(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orrery.pipeline.cli", *arguments]
    base = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HOME": str(folder / "hf")}
    base.pop("HF_TOKEN", None)
    return subprocess.run(
        command, cwd=folder, env={**base, **environment}, capture_output=True, text=True, timeout=300
    )  # fmt: skip


def test_push_then_extract_from_the_hub_elsewhere(model: Path, tmp_path: Path) -> None:
    with FakeHub() as hub:
        here, there = tmp_path / "here", tmp_path / "there"
        here.mkdir()
        there.mkdir()
        pushed = orrery(here, "push", str(model), "me/tiny", HF_ENDPOINT=hub.url, HF_TOKEN="hf_writer")
        assert pushed.returncode == 0, pushed.stderr
        assert f"published: {hub.url}/me/tiny" in pushed.stdout
        arguments = ("run", "from_checkpoint", "world_model=me/tiny", f"tasks=[{TASKS[0]}]", *SMALL)
        done = orrery(there, *arguments, HF_ENDPOINT=hub.url)
        assert done.returncode == 0, done.stderr
        run = there / "runs" / "from_checkpoint"
        index = json.loads((run / "extract" / "policies.json").read_text())
        assert [entry["task"] for entry in index["policies"]] == [TASKS[0]]
        with (run / "evaluate" / "scores.csv").open() as file:
            rows = {(row["algorithm"], row["task"]) for row in csv.DictReader(file)}
        assert rows == {("pwm", TASKS[0]), ("random", TASKS[0])}  # nothing of the other task, which has no policy
        assert (run / "report" / "index.html").is_file()
    # The Hub is gone; what was downloaded is still there, and the run is up to date.
    again = orrery(there, *arguments, HF_ENDPOINT=hub.url)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stdout


def test_a_dry_run_writes_the_folder_and_asks_nobody(model: Path, tmp_path: Path) -> None:
    done = orrery(tmp_path, "push", str(model), "me/tiny", "--dry-run", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "published" / "me" / "tiny" / "README.md").is_file()
    shown = orrery(tmp_path, "inspect", "published/me/tiny")
    assert "gymnasium/CartPole-v1" in shown.stdout
    refused = orrery(tmp_path, "run", "from_checkpoint", "world_model=me/tiny", HF_ENDPOINT="http://127.0.0.1:9")
    assert refused.returncode == 2
    message = " ".join(refused.stderr.split())
    assert "no copy of me/tiny in the cache of the Hugging Face Hub, which cannot be reached" in message
    assert "Traceback" not in message
