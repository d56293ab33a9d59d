"""Jobs and a stage of test_fanout.py and test_fanout_command.py, in a module that other processes can import.

What goes wrong with a job stands in the file $FAULTS/<name of the job>, so that a test can heal it.
"""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orrery.pipeline import termination
from orrery.pipeline.jobs.fanout import FanoutConfig, FolderJob, fan_out
from orrery.pipeline.jobs.job import JobContext
from orrery.pipeline.stage import Context, Stage

STEP_SECONDS = 0.05


def fault_of(name: str) -> str:
    path = Path(os.environ["FAULTS"]) / name
    return path.read_text() if path.exists() else ""


def square(payload: Mapping[str, Any], context: JobContext) -> None:
    """Write the square of a number, unless something goes wrong."""
    attempts = context.folder / "attempts"
    context.log.info("logged by %s", payload["name"])
    fault = fault_of(payload["name"])
    with context.progress("squaring", total=1) as progress:
        if fault == "raise":
            raise ValueError(f"{payload['number']} is a bad number")
        if fault.startswith(("damage ", "remove ")):
            other = context.folder.parents[1] / fault[7:]
            if fault.startswith("remove "):
                shutil.rmtree(other)
            elif (result := other / "result" / "square.json").exists():
                result.write_text("7")
        if fault == "exit":
            os._exit(7)
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hang":
            time.sleep(600)
        if fault == "hang in C":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        if fault == "raise once" and not attempts.exists():
            attempts.write_text("1")
            raise ValueError("the first attempt is lost")
        progress.advance(1)
    attempts.unlink(missing_ok=True)
    (context.folder / "square.json").write_text(json.dumps(payload["number"] ** 2))
    (context.folder / "deep").mkdir(exist_ok=True)
    (context.folder / "deep" / "name.txt").write_text(payload["name"])


def count(payload: Mapping[str, Any], context: JobContext) -> None:
    """Count for some seconds, from where an earlier attempt stopped; SIGTERM saves the number."""
    saved = context.folder / "count.txt"
    first = number = int(saved.read_text()) if saved.exists() else 0
    fault = fault_of(payload["name"])
    if fault == "raise":
        raise ValueError("cannot count")
    if fault == "lose the watcher":
        os.kill(os.getppid(), signal.SIGKILL)
    if fault in ("hang", "lose the watcher"):
        time.sleep(600)
    hoard = b"x" * 2**30 if fault == "hoard" else b""
    with termination.deferred(), context.progress("counting", payload["until"], first) as progress:
        while number < payload["until"] and not termination.requested():
            number += 1
            progress.advance(1)
            time.sleep(STEP_SECONDS)
        saved.write_text(str(number))
    del hoard
    (context.folder / "first.txt").write_text(str(first))


def environment(payload: Mapping[str, Any], context: JobContext) -> None:
    """Note what the executor set, and long enough that others run meanwhile."""
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    facts = {name: os.environ.get(name) for name in names} | {"threads": context.threads}
    time.sleep(payload["seconds"])
    (context.folder / "environment.json").write_text(json.dumps(facts))


@dataclass(frozen=True)
class CountConfig:
    until: int = 20
    jobs: int = 3
    fanout: FanoutConfig = field(default_factory=FanoutConfig)


class Count(Stage):
    """Counts, in jobs."""

    Config = CountConfig
    output_kind = "counts"
    not_hashed = ("fanout",)

    def check_machine(self) -> None:
        self.config.fanout.check_machine()

    def run(self, context: Context) -> str:
        names = [f"job{number}" for number in range(self.config.jobs)]
        jobs = [FolderJob(name, {"name": name, "until": self.config.until}) for name in names]
        folders = fan_out(jobs, count, context, self.config.fanout)
        counted = [int((folder / "count.txt").read_text()) for folder in folders.values()]
        firsts = [(folder / "first.txt").read_text() for folder in folders.values()]
        (context.folder / "total.txt").write_text(str(sum(counted)))
        return f"counted {sum(counted)}, from {' '.join(firsts)}"


def write_configs(folder: Path) -> Path:
    """Write the configs of the toy project and return their folder."""
    (folder / "experiments").mkdir(parents=True)
    (folder / "base.yaml").write_text("defaults: [schema, _self_]\n")
    (folder / "experiments" / "toy.yaml").write_text(
        "# @package _global_\n# Counts\ndefaults: [/base, _self_]\nstages: [count]\n"
    )
    return folder


if __name__ == "__main__":
    import fanout_jobs  # by its own name, which jobs elsewhere import
    from orrery.pipeline.cli import main

    sys.exit(main(sys.argv[2:], stages={"count": fanout_jobs.Count}, config_dir=Path(sys.argv[1])))
