"""Kills at random, over a whole run: at random times and random file operations, of the command or of all it started.

Every end state has to be that of a run that was not killed. tests/unit/test_kills.py goes through all file operations
of a run of toy stages, one after another.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from orrery.pipeline import artifact

EXPERIMENT = Path(__file__).with_name("kills.yaml")
KILLS = Path(__file__).parents[1] / "unit" / "kills.py"

# What names its run folder, and the report, which says when the run was made; they have to be there all the same.
OF_THIS_RUN = ("pack/store.json", "pack/*/task.json", "report/index.html")
OF_ATTEMPTS = tuple(f"*/{name}/*" for name in artifact.OF_ATTEMPTS)

FIRST_SECONDS, LAST_SECONDS = 1.0, 15.0
"""Of a kill at a random time; a command needs the first second to load."""
OPERATIONS = 120
"""Of a kill at a random file operation."""


@dataclass
class Victim:
    """A run that is killed, and repeated, until it is done."""

    folder: Path
    settings: tuple[str, ...]
    environment: dict[str, str]
    kills: Counter[str] = field(default_factory=Counter)
    """By way."""

    def finish(self) -> None:
        """Run without a kill."""
        done = subprocess.run(self._command(), env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def kill(self, rng: random.Random) -> bool:
        """Run with a kill; False where it was done before that."""
        way = rng.choice(["time", "time, all processes", "file operation", "file operation, half written"])
        environment = dict(self.environment)
        if way.startswith("file"):
            environment |= {"KILL_AT": str(rng.randint(1, OPERATIONS)), "KILL_OPENED": "half" if "half" in way else ""}
        with (self.folder.parent / "out.txt").open("w") as out:
            process = subprocess.Popen(
                self._command(), env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
            if way.startswith("time"):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(rng.uniform(FIRST_SECONDS, LAST_SECONDS))
                with contextlib.suppress(ProcessLookupError):
                    (os.killpg if "all" in way else os.kill)(process.pid, signal.SIGKILL)
            code = process.wait()
        if code == 0:
            return False
        said = (self.folder.parent / "out.txt").read_text()
        # 2: a worker or a job was killed, not the command, which says so.
        assert code == -signal.SIGKILL or (code == 2 and ("died" in said or "SIGKILL" in said)), said
        self.kills[way if code < 0 else f"{way}, of a worker"] += 1
        return True

    def _command(self) -> list[str]:
        run = [sys.executable, "-m", "orrery.pipeline.cli", "run", str(EXPERIMENT), f"run_dir={self.folder}"]
        return [*run, *self.settings]

    def state(self) -> dict[str, str]:
        """Digest of every file of the artifacts, which are verified; and what else there is."""
        found = {}
        for manifest in sorted(self.folder.glob("*/manifest.json")):
            stage = manifest.parent
            artifact.verify(stage, json.loads(manifest.read_text())["kind"])
            for path, record in json.loads(manifest.read_text())["files"].items():
                name = f"{stage.name}/{path}"
                if not _matches(name, OF_ATTEMPTS):
                    found[name] = "" if _matches(name, OF_THIS_RUN) else record["sha256"]
        return found | {path.name: "" for path in self.folder.iterdir()}


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def kill_at_random(folder: Path, kills: int, seed: int, settings: tuple[str, ...] = ()) -> None:
    """Kill runs until there were so many kills, and compare every end state."""
    # Read by every Python process of a command when it starts.
    (folder / "sitecustomize.py").write_text(
        "import os\n"
        "if 'KILL_AT' in os.environ:\n"
        f"    exec(compile(open({str(KILLS)!r}).read(), 'kills', 'exec'))\n"
        "    kill_at(int(os.environ['KILL_AT']), os.environ['KILL_BELOW'], opened=bool(os.environ['KILL_OPENED']))\n"
    )

    def victim(name: str) -> Victim:
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        return Victim(folder / name / "run", settings, {**environment, "KILL_BELOW": str(folder / name / "run")})

    whole = victim("whole")
    whole.finish()
    expected = whole.state()
    rng = random.Random(seed)
    total: Counter[str] = Counter()
    runs = 0
    while total.total() < kills:
        one, runs = victim(f"killed{runs}"), runs + 1
        one.folder.parent.mkdir()
        started = time.monotonic()
        while total.total() + one.kills.total() < kills and one.kill(rng):
            pass
        one.finish()
        assert one.state() == expected, f"{one.folder}, kills: {dict(one.kills)}"
        total += one.kills
        print(f"run {runs}: {one.kills.total()} kills, {time.monotonic() - started:.0f} s, equal", flush=True)
    print(f"{total.total()} kills in {runs} runs, all equal: {dict(total)}")


def test_a_run_that_is_killed_a_few_times_ends_as_one_that_is_not(tmp_path: Path) -> None:
    # Training and extraction are killed in test_run.py.
    settings = ("stages=[collect,pack,powr,evaluate]", "tasks=[gymnasium/CartPole-v1]")
    kill_at_random(tmp_path, 2, 182, settings)


@pytest.mark.slow
def test_a_hundred_kills_over_all_stages_change_nothing(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 100, 0)
