"""Sampler and trainer at one and two ranks: `python tests/benchmarks/training.py`.

A store of ten tasks (24 + 6, 100,000 transitions), mapped; windows of 3 steps. The sampler draws its rank's part of
a global batch of 256 windows as one of 1, 2 or 8 ranks. The trainer is the stage's own (Lightning; gloo between ranks)
on a model of size 1, with the same global batch of 256 at one and at two ranks, and with 256 for each of two. Prints
one JSON line each. Rates are per second of a rank's CPU time, one thread: what two cores of their own would give; on a
busy machine the wall clock says nothing. Medians over steps, the first few left out.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from orrery.datasets.datamodule import WindowData, WindowSettings
from orrery.datasets.schema import TaskSpec
from orrery.datasets.store import TaskStore
from orrery.datasets.windows import WindowSampler
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.stage import Context
from orrery.stages.pretrain.config import PretrainConfig
from orrery.stages.training.config import OptimizerConfig, TrainerConfig
from orrery.stages.training.fit import fit
from orrery.stages.world_model.config import LossConfig, WorldModelConfig
from orrery.stages.world_model.module import WorldModelTraining
from orrery.stages.world_model.networks import WorldModel
from random_store import write_random_store
from rich.console import Console

SPECS = [TaskSpec(f"bench/{i}", 24, 6, 500) for i in range(10)]
TRANSITIONS, HORIZON, GLOBAL_BATCH = 100_000, 3, 256
ROUNDS, DRAWN, WARM_UP = 5, 200, 3


class TimedTraining(WorldModelTraining):
    """Writes the CPU-seconds of this rank between the ends of steps."""

    times_in: str = ""

    def on_train_start(self) -> None:
        super().on_train_start()
        self._ends: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self._ends.append(time.process_time())

    def on_train_end(self) -> None:
        seconds = [b - a for a, b in zip(self._ends, self._ends[1:], strict=False)][WARM_UP:]
        (Path(self.times_in) / f"{self.global_rank}.json").write_text(json.dumps(seconds))


def sampler_line(folder: Path) -> dict[str, Any]:
    store = TaskStore.open(folder)
    samplers = {
        ranks: WindowSampler(
            store, length=HORIZON, batch_size=GLOBAL_BATCH // ranks, seed=0, rank=ranks - 1, world_size=ranks
        )
        for ranks in (1, 2, 8)
    }
    rates: dict[int, list[float]] = {ranks: [] for ranks in samplers}
    for round_ in range(ROUNDS + 1):
        for ranks, sampler in samplers.items():
            start = time.process_time()
            for step in range(DRAWN):
                sampler.batch(round_ * DRAWN + step)
            if round_:
                rates[ranks].append(DRAWN / (time.process_time() - start))
    medians = {f"{ranks} ranks": round(statistics.median(values)) for ranks, values in rates.items()}
    return {"benchmark": "sampler of a rank", "global_batch": GLOBAL_BATCH, "batches_per_cpu_second": medians}


def trainer_line(folder: Path, devices: int, batch_size: int, steps: int) -> dict[str, Any]:
    torch.manual_seed(0)
    store = TaskStore.open(folder)
    trainer = TrainerConfig(accelerator="cpu", devices=devices)
    config = replace(PretrainConfig(steps=steps, validate_every=steps, checkpoint_every=steps), trainer=trainer)
    model = WorldModel(WorldModelConfig(size="1"), store.table)
    module = TimedTraining(model, LossConfig(), OptimizerConfig(), torch.ones(len(store.table)), steps, log_every=25)
    settings = WindowSettings(HORIZON, batch_size, 0, 0.1, 16, 1)
    with tempfile.TemporaryDirectory() as place:
        module.times_in = place
        context = Context(Path(place), {}, 1, 1, logging.getLogger(), ConsoleProgress(Console(quiet=True)))
        fit(module, WindowData(folder, settings), config, "benchmark", context)
        ranks = [json.loads((Path(place) / f"{rank}.json").read_text()) for rank in range(devices)]
    seconds = statistics.mean(statistics.median(times) for times in ranks)
    return {
        "benchmark": "trainer",
        "ranks": devices,
        "windows_per_rank": batch_size,
        "cpu_seconds_per_step_of_a_rank": round(seconds, 4),
        "steps_per_cpu_second_of_a_rank": round(1 / seconds, 2),
        "windows_per_cpu_second_of_a_rank": round(batch_size / seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--part", nargs=3, metavar=("STORE", "RANKS", "BATCH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part:
        store, ranks, batch_size = arguments.part
        warnings.simplefilter("ignore")
        print(json.dumps(trainer_line(Path(store), int(ranks), int(batch_size), arguments.steps)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "store"
        write_random_store(folder, SPECS, TRANSITIONS)
        print(json.dumps(sampler_line(folder)), flush=True)
        for ranks, batch_size in ((1, 256), (2, 128), (2, 256)):
            # Each in a process of its own, as the ranks of the second are.
            part = [str(folder), str(ranks), str(batch_size)]
            command = [sys.executable, __file__, "--steps", str(arguments.steps), "--part", *part]
            print(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout, end="", flush=True)


if __name__ == "__main__":
    main()
