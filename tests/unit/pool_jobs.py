"""Jobs of test_pool.py, in a module that spawned processes can import."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


class TwoArgumentError(Exception):
    """Cannot be unpickled: Exception keeps one of its arguments only."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def square(job: int) -> tuple[int, str]:
    if job == 2:
        raise TwoArgumentError(2, 3)
    if job == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return job * job, os.environ["OMP_NUM_THREADS"]


def start_and_end_a_process(_: int) -> int:
    """Its exit status: SIGTERM ends it, as it does a simulator that an environment runs."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process.terminate()
    return process.wait()


def leave_pid_and_sleep(job: tuple[Path, float]) -> None:
    folder, seconds = job
    (folder / str(os.getpid())).touch()
    time.sleep(seconds)
