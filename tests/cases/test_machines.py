"""What the machine lacks: schedulers, libraries, GPUs."""

import shutil
from importlib.util import find_spec

import pytest


@pytest.mark.slow
def test_49_missing_machinery_is_said_before_anything_runs(run_case) -> None:
    sections = run_case("49-missing-machinery")
    expected = {
        "slurm executor, no SLURM": ["extract.fanout.executor=slurm: srun is not available on this machine"],
        "ray executor, no ray": ["extract.fanout.executor=ray needs Ray, which is not installed: pip install 'orrery[ray]'"],
        "accelerator=gpu, no GPU": ["pretrain.trainer.accelerator is gpu, but no GPU is available"],
        "accelerator=cuda in extract and evaluate": [
            "extract.accelerator is cuda, but no GPU is available",
            "evaluate.accelerator is cuda, but no GPU is available",
        ],
    }
    if shutil.which("srun"):  # tests/cluster says what a queue without slurm.conf answers
        del expected["slurm executor, no SLURM"]
    if find_spec("ray"):
        del expected["ray executor, no ray"]
    for title, messages in expected.items():
        printed = sections[title]
        assert printed.count("rc=2") == printed.count("error: ") == len(messages), printed
        assert all(message in printed for message in messages), printed
        assert "Traceback" not in printed
        assert "starts" not in printed and "done" not in printed and "running" not in printed, printed
