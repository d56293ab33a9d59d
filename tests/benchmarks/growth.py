"""Time and memory as tasks, data and policies grow: `python tests/benchmarks/growth.py`.

tasks: a training step of size 1 (batch 256, horizon 3, 24 + 6 columns) on 8, 30 and 80 tasks. gigabytes: opening a
mapped store of one task, a batch of 256 windows from it, and such a step; the store is a sparse file, whose pages are
made, not read, so that no disk counts. policies: an update of 1, 30 and 240 svg policies as one program on the small
model. Each is a process of its own, one thread. Prints a JSON line each: CPU-milliseconds, and `private_mb`, the
highest memory of the process beside shared pages.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import extraction
import numpy as np
import torch
import training
from memory import Watch
from orrery.datasets.facts import EPISODES_FILE
from orrery.datasets.schema import TaskSpec
from orrery.datasets.store import STORE_FILE, TaskStore
from orrery.datasets.windows import WindowSampler
from random_store import write_random_store

CASES = {"tasks": (8, 30, 80), "gigabytes": (1, 10, 100), "policies": (1, 30, 240)}


def tasks(number: int, place: Path) -> dict[str, float]:
    specs = [TaskSpec(f"bench/{i}", 24, 6, 500) for i in range(number)]
    write_random_store(place / "store", specs, 4_000 * number)
    return {"step": training_step(place)}


def gigabytes(number: int, place: Path) -> dict[str, float]:
    spec = TaskSpec("bench/large", 24, 6, 500)
    columns = write_random_store(place / "store", [spec], 5_000).tasks[0].rows.shape[1]
    episodes = number * 10**9 // (4 * columns * (spec.episode_length + 1))
    offsets = np.arange(episodes + 1) * (spec.episode_length + 1)
    folder = place / "store" / spec.slug
    os.truncate(folder / "rows.f32", int(offsets[-1]) * 4 * columns)
    np.savez(folder / EPISODES_FILE, offsets=offsets, terminated=np.zeros(episodes, bool), returns=np.zeros(episodes))
    described = json.loads((place / "store" / STORE_FILE).read_text())
    described["tasks"][0] |= {"episodes": episodes, "transitions": episodes * spec.episode_length}
    (place / "store" / STORE_FILE).write_text(json.dumps(described))
    start = time.process_time()
    sampler = WindowSampler(TaskStore.open(place / "store"), length=3, batch_size=256, seed=0)
    opened = 1e3 * (time.process_time() - start)
    return {"open": opened, "batch": median(sampler.batch, 200), "step": training_step(place)}


def policies(number: int, place: Path) -> dict[str, float]:
    arguments = argparse.Namespace(algorithm="svg", compile=False)
    (program,) = extraction.programs("batched", "small", number, "cpu", arguments)
    return {"update": median(program.update, 6)}


def training_step(place: Path) -> float:
    warnings.simplefilter("ignore")
    line = training.trainer_line(place / "store", devices=1, batch_size=256, steps=12)
    return 1e3 * float(line["cpu_seconds_per_step_of_a_rank"])


def median(work: Callable[[int], object], times: int) -> float:
    """Of CPU-milliseconds, without the first."""
    taken = []
    for number in range(times):
        start = time.process_time()
        work(number)
        taken.append(1e3 * (time.process_time() - start))
    return statistics.median(taken[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--case", nargs=2, metavar=("CASE", "NUMBER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is None:
        for case in arguments.cases:
            for number in CASES[case]:
                command = [sys.executable, __file__, "--case", case, str(number)]
                print(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout, end="", flush=True)
        return
    case, number = arguments.case
    torch.set_num_threads(1)
    watch = Watch()
    with tempfile.TemporaryDirectory() as place:
        watch.start()
        found = {"tasks": tasks, "gigabytes": gigabytes, "policies": policies}[case](int(number), Path(place))
        watch.look()
    line = {"benchmark": "growth", case: int(number), "ms": {name: round(value, 2) for name, value in found.items()}}
    print(json.dumps({**line, "private_mb": watch.private // 10**6}))


if __name__ == "__main__":
    main()
