"""Planning beside extraction and cloning: one list of algorithms, one table of scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

TINY = Path(__file__).with_name("tiny.yaml")


def test_planner_and_policies_are_scored_side_by_side(tmp_path):
    command = [
        *(sys.executable, "-m", "orrery.pipeline.cli", "run", str(TINY), f"run_dir={tmp_path}", "seeds=1"),
        *("stages=[collect,pack,pretrain,extract,mppi,evaluate,report]", "algorithms=[pwm,tdmpc2_plan,bc]"),
        *("pretrain.model.num_q=2", "pretrain.steps=20", "extract.iterations=10", "workers=1"),
        *("evaluate.episodes=1", "collect.episodes=10", "pretrain.held_out=0.3"),
        "mppi.planner={horizon: 2, iterations: 1, samples: 8, elites: 2, prior_trajectories: 2}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    scores = pd.read_csv(tmp_path / "evaluate" / "scores.csv")
    tasks = {"gymnasium/Pendulum-v1", "gymnasium/CartPole-v1"}
    for algorithm in ("pwm", "tdmpc2_plan", "bc"):
        own = scores[scores.algorithm == algorithm]
        assert set(own.task) == tasks
        assert own.score.notna().all()
    summary = json.loads((tmp_path / "evaluate" / "summary.json").read_text())
    assert summary["failures"] == []
    assert "tdmpc2_plan" in (tmp_path / "report" / "index.html").read_text()
