"""The script that a machine with a GPU runs before long training, where there is none: tiny, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "gpu" / "check.sh"


def check(tmp_path, *arguments):
    """Runs it where no simulator can be imported."""
    for simulator in ("dm_control", "metaworld", "mujoco"):
        (tmp_path / f"{simulator}.py").write_text("raise ImportError('not installed')\n")
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)}
    return subprocess.run(["bash", SCRIPT, *arguments], env=environment, capture_output=True, text=True)


def test_everything_is_checked_without_a_simulator(tmp_path):
    done = check(tmp_path, "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if "%" in line]
    assert len(rows) == 3 + 2 * 2 * 2  # training in three precisions; svg and pwm in two, together and one by one
    assert "with a resume: weights differ by 0\n" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_can_be_run(tmp_path):
    done = check(tmp_path)
    assert done.returncode == 2
    assert "PyTorch finds no GPU here; --device cpu checks the same with tiny sizes" in done.stderr
