"""A study at its smallest, as a user runs it: what variants share runs once, and they end side by side."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from orrery.pipeline.study.study import read_study

TINY = Path(__file__).with_name("tiny.yaml")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
STUDY = f"""\
# Latents by horizon
experiment: {TINY}
overrides:
  - stages=[collect,pack,pretrain,gradients,extract,evaluate]
  - tasks=[gymnasium/Pendulum-v1]
  - workers=1
  - collect.episodes=10
  - 'gradients={{horizons: [1, 4], trajectories: 4, probes: 2}}'
  - extract.iterations=5
  - evaluate.episodes=1
grid:
  pretrain.model.latent: [simnorm, mish]
  extract.first_order.horizon: [2, 4]
"""


def orrery(*arguments, **options):
    command = [sys.executable, "-m", "orrery.pipeline.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=600, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    parent = tmp_path_factory.mktemp("study")
    (parent / "latents.yaml").write_text(STUDY)
    result = orrery("study", "latents.yaml", cwd=parent)
    assert result.returncode == 0, result.stdout + result.stderr
    return parent / "runs" / "latents"


def test_what_variants_share_runs_once(finished):
    runs = {}
    for name in (f"latent={latent},horizon={horizon}" for latent in ("simnorm", "mish") for horizon in (2, 4)):
        stages = json.loads((finished / name / "run.json").read_text())["stages"]
        runs[name] = {one["stage"]: Path(one["made_in"]).name for one in stages if one["status"] == "reused"}
        assert len(stages) == 6
    first = dict.fromkeys(("collect", "pack"), "latent=simnorm,horizon=2")
    assert runs == {
        "latent=simnorm,horizon=2": {},
        "latent=simnorm,horizon=4": first | dict.fromkeys(("pretrain", "gradients"), "latent=simnorm,horizon=2"),
        "latent=mish,horizon=2": first,
        "latent=mish,horizon=4": dict.fromkeys(("collect", "pack", "pretrain", "gradients"), "latent=mish,horizon=2"),
    }


def test_variants_stand_side_by_side(finished):
    frame = read_study(finished)
    assert set(frame.latent) == {"simnorm", "mish"}
    assert set(frame.horizon) == {2, 4}
    assert set(frame.algorithm) == {"pwm", "bc", "behaviour", "random"}
    scores = pd.read_csv(finished / "latent=mish,horizon=4" / "evaluate" / "scores.csv")
    own = frame[(frame.variant == "latent=mish,horizon=4") & (frame.algorithm == "pwm")]
    assert own[own.row == "task"].score.tolist() == pytest.approx([scores[scores.algorithm == "pwm"].score.mean()])
    assert own[own.row == "mean"].score.tolist() == own[own.row == "task"].score.tolist()  # of a single task
    errors = pd.read_csv(finished / "compare" / "open_loop.csv")
    assert errors.model.nunique() == 2
    assert errors.latent_mse.gt(0).all()
    assert pd.read_csv(finished / "compare" / "model_gradients.csv").predicted.unique().tolist() == [1, 4]
    assert set(pd.read_csv(finished / "compare" / "actor_gradients.csv").statistic) >= {"actor_grad_norm"}
    assert "latent=mish" in (finished / "compare" / "study.html").read_text()


def test_the_same_command_again_does_nothing_and_a_new_value_only_what_it_needs(finished):
    parent = finished.parent.parent
    result = orrery("study", "latents.yaml", cwd=parent)
    assert "nothing to do: every variant is up to date" in result.stdout
    result = orrery("study", "latents.yaml", "--plan", "grid.extract.first_order.horizon=[4,8]", cwd=parent)
    rows = [re.split("  +", line.strip()) for line in result.stdout.splitlines()]
    assert ["latent=mish,horizon=4", "collect, pack, pretrain, gradients, extract, evaluate", "up to date"] in rows
    at = next(number for number, row in enumerate(rows) if row[0] == "latent=mish,horizon=8")
    assert rows[at : at + 3] == [
        [rows[at][0], "collect, pack, pretrain, gradients", "reuse", "shared with latent=mish,horizon=2"],
        ["extract", "run", "not run yet"],
        ["evaluate", "run", "extract runs first"],
    ]
    status = orrery("status", finished).stdout
    assert "not running, 4 of 4 variants complete" in status
    assert "comparison: " in status
