"""A project of one stage that fans out, run by the command line as users do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ..unit.fanout_jobs import write_configs

UNIT = Path(__file__).parents[1] / "unit"


class Project:
    """The run folder of the stage of fanout_jobs.py, and the commands over it."""

    def __init__(self, folder: Path, on: Callable[..., list[str]] = lambda *command: list(command)) -> None:
        """Args:
        on: turns a command into that which runs it on a certain host.
        """
        self.on = on
        self.config_dir = write_configs(folder / "configs")
        self.run_dir = folder / "run"
        self.jobs = self.run_dir / "count.jobs"
        self.faults = folder / "faults"
        self.faults.mkdir()
        self.out, self.err = folder / "out.txt", folder / "err.txt"
        self.environment = {**os.environ, "PYTHONPATH": str(UNIT), "FAULTS": str(self.faults)}

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = self.on(sys.executable, str(UNIT / "fanout_jobs.py"), str(self.config_dir), *arguments)
        # Into files: what goes on after the command would hold a pipe open.
        with self.out.open("w") as out, self.err.open("w") as err:
            return subprocess.Popen(command, stdout=out, stderr=err, env=self.environment)

    def call(self, *arguments: str) -> tuple[int, str, str]:
        with self.start(*arguments) as process:
            process.wait(timeout=180)
        return process.returncode, self.out.read_text(), self.err.read_text()

    def run(self, *overrides: str) -> tuple[int, str, str]:
        return self.call("run", "toy", f"run_dir={self.run_dir}", *overrides)

    def status(self) -> dict[str, str]:
        """State of each job, as `orrery status` shows it."""
        code, out, _ = self.call("status", str(self.run_dir))
        assert code == 0
        return {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines() if re.match(r"job\d", line)}

    def wait_for(self, *names: str) -> None:
        """Until these jobs say how far they are."""
        paths = [self.jobs / name / "progress.json" for name in names]
        wait_until(lambda: all(path.exists() for path in paths))
        time.sleep(0.3)


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)
