"""Digests of what a reduced quickstart makes: `python tests/benchmarks/digests.py [FOLDER]`.

Run it before and after a change that must not change results, such as a move; on one machine both print the same line.
Two tasks, 40 updates of the model, 5 of the policies; one process of one thread, about a minute. Without FOLDER the run
is made in a temporary one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from orrery.pipeline.cli import main

OVERRIDES = (
    "tasks=[dmc/cartpole-balance,metaworld/reach-v3]",
    "algorithms=[pwm,bc]",
    "workers=1",
    "threads=1",
    "collect.episodes=6",
    "pretrain.steps=40",
    "pretrain.validate_every=20",
    "pretrain.trainer.devices=1",
    "extract.iterations=5",
    "evaluate.episodes=1",
)
FILES = ("pack/*/rows.f32", "pretrain/*.safetensors", "extract/**/*.safetensors", "evaluate/*.csv")


def digests(run_dir: Path) -> dict[str, str]:
    """SHA-256 of each file of a run that holds results, by its path in the run folder."""
    files = sorted(file for pattern in FILES for file in run_dir.glob(pattern))
    return {str(file.relative_to(run_dir)): hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        run_dir = Path(sys.argv[1] if len(sys.argv) > 1 else temporary) / "run"
        with contextlib.redirect_stdout(sys.stderr):
            failed = main(["run", "quickstart", f"run_dir={run_dir}", *OVERRIDES])
        if not failed:
            print(json.dumps(digests(run_dir)))
    sys.exit(failed)
