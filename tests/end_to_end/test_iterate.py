"""Two rounds as a user runs them: the second collects with the first one's policies, and nothing is done twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from orrery.datasets.store import TaskStore

TINY = Path(__file__).with_name("tiny.yaml")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
SETTINGS = (
    "stages=[collect,pack,pretrain,extract,evaluate]", "tasks=[gymnasium/Pendulum-v1]", "algorithms=[pwm]", "workers=1",
    "collect.episodes=5", "later.collect.episodes=3", "pretrain.steps=10", "pretrain.validate_every=10",
    "extract.iterations=3", "evaluate.episodes=1", "warm_start=true",
)  # fmt: skip


def orrery(*arguments, **options):
    command = [sys.executable, "-m", "orrery.pipeline.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=600, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    parent = tmp_path_factory.mktemp("iterate")
    result = orrery("iterate", TINY, "rounds=2", *SETTINGS, cwd=parent)
    assert result.returncode == 0, result.stdout + result.stderr
    return parent / "runs" / "tiny_rounds", result.stdout


def test_the_second_round_has_the_data_of_both(finished):
    run_dir, _ = finished
    rounds = [TaskStore.open(run_dir / f"round_{k}" / "pack") for k in (0, 1)]
    assert [len(store.tasks[0].lengths) for store in rounds] == [5, 8]
    record = json.loads((run_dir / "round_1" / "collect" / "datasets.json").read_text())["tasks"]
    assert record["gymnasium/Pendulum-v1"]["behaviour"] == "policy"
    assert [store.tasks[0].summary.behaviour for store in rounds] == ["exploration", "exploration"]


def test_scores_stand_round_by_round(finished):
    run_dir, printed = finished
    frame = pd.read_csv(run_dir / "compare" / "study.csv")
    means = frame[(frame.row == "mean") & (frame.algorithm == "pwm")]
    assert means["round"].tolist() == [0, 1]
    assert means.score.notna().all()
    lines = printed[printed.index("mean score  ") :].splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["mean", "round_0", "round_1"]
    assert "1,600 transitions of 1 task" in lines[2]


def test_the_same_command_does_nothing_and_a_third_round_only_itself(finished):
    run_dir, _ = finished
    result = orrery("iterate", TINY, "rounds=2", *SETTINGS, cwd=run_dir.parent.parent)
    assert "nothing to do: every round is up to date" in result.stdout
    result = orrery("iterate", TINY, "rounds=3", *SETTINGS, "--plan", cwd=run_dir.parent.parent)
    assert result.stdout.count("collect, pack, pretrain, extract, evaluate  up to date") == 2
    assert "not run yet" in result.stdout
    result = orrery("iterate", TINY, "rounds=2", *SETTINGS, "collect.seed=1", "--plan", cwd=run_dir.parent.parent)
    assert "collect.seed 0 -> 1" in result.stdout
    assert "it waits for round_0" in result.stdout
    result = orrery("status", run_dir)
    assert result.stdout.count("5 of 5 stages") == 2
    (run_dir / "compare" / "study.html").unlink()
    result = orrery("report", run_dir)
    assert result.returncode == 0, result.stderr
    assert (run_dir / "compare" / "study.html").is_file()
