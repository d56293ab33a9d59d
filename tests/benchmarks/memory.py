"""Memory of packing, sampling and training while the data grows ten times: `python tests/benchmarks/memory.py`.

One HDF5 file of a task (60 + 3 columns, episodes of 500) is packed by the stage pack; 2000 batches of 256 windows are
drawn from the store; and a model of size 1 is trained on it for 20 steps by the stage pretrain's trainer. Each is a
process of its own. The store is mapped (load_up_to_gb=0), so its pages that the kernel has read lie in the process's
resident memory, too, until somebody needs the room; `private_mb` is what is not such pages, at its highest. Prints one
JSON line per work and size of the store.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import psutil
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.stage import Context
from rich.console import Console

OBSERVATION, ACTION, EPISODE = 60, 3, 500
WORKS = ("pack", "sample", "train")


class Watch(threading.Thread):
    """The highest private and resident memory of this process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process()
        self.private = self.resident = 0
        self.look()

    def look(self) -> None:
        memory = self._process.memory_info()
        self.private = max(self.private, memory.rss - memory.shared)
        self.resident = max(self.resident, memory.rss)

    def run(self) -> None:
        while True:
            self.look()
            time.sleep(0.01)


def write_data(file: Path, episodes: int) -> None:
    """A file in D4RL's layout, of random numbers."""
    import h5py
    import numpy as np

    random = np.random.default_rng(0)
    with h5py.File(file, "w") as data:
        rows = episodes * EPISODE
        shapes = {"observations": (rows, OBSERVATION), "actions": (rows, ACTION), "rewards": (rows,)}
        columns = {name: data.create_dataset(name, shape, "f4") for name, shape in shapes.items()}
        ends = np.zeros(rows, bool)
        ends[EPISODE - 1 :: EPISODE] = True
        data["timeouts"], data["terminals"] = ends, np.zeros(rows, bool)
        for start in range(0, rows, EPISODE):
            part = slice(start, start + EPISODE)
            columns["observations"][part] = random.standard_normal((EPISODE, OBSERVATION), dtype=np.float32)
            columns["actions"][part] = random.uniform(-1, 1, (EPISODE, ACTION))
            columns["rewards"][part] = random.random(EPISODE)


def context(folder: Path, **inputs: list[Path]) -> Context:
    folder.mkdir(exist_ok=True)
    return Context(folder, inputs, 1, 1, logging.getLogger(), ConsoleProgress(Console(quiet=True)))


def pack(place: Path) -> None:
    from orrery.stages.data.config import PackConfig, SourceConfig
    from orrery.stages.data.stage_pack import Pack

    source = SourceConfig(path=str(place / "data.hdf5"), behaviour="exploration")
    Pack(PackConfig(sources={"bench/large": source})).run(context(place / "store", datasets=[]))


def sample(place: Path) -> None:
    from orrery.datasets.store import TaskStore
    from orrery.datasets.windows import WindowSampler

    sampler = WindowSampler(TaskStore.open(place / "store"), length=16, batch_size=256, seed=0)
    for step in range(2000):
        sampler.batch(step)


def train(place: Path) -> None:
    from orrery.stages.pretrain.config import PretrainConfig
    from orrery.stages.pretrain.stage_pretrain import Pretrain
    from orrery.stages.training.config import TrainerConfig
    from orrery.stages.world_model.config import WorldModelConfig

    config = PretrainConfig(
        model=WorldModelConfig(size="1"),
        trainer=TrainerConfig(accelerator="cpu"),
        steps=20,
        horizon=3,
        load_up_to_gb=0,
        validate_every=20,
    )
    Pretrain(config).run(context(place / "pretrain", store=[place / "store"]))


def work(name: str, place: Path) -> None:
    warnings.simplefilter("ignore")
    watch = Watch()
    watch.start()
    {"pack": pack, "sample": sample, "train": train}[name](place)
    watch.look()
    size = (place / "store" / "bench.large" / "rows.f32").stat().st_size
    line = {"benchmark": "memory", "work": name, "store_mb": size // 10**6}
    print(json.dumps({**line, "private_mb": watch.private // 10**6, "resident_mb": watch.resident // 10**6}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=40, help="of the smaller store")
    parser.add_argument("--work", nargs=2, metavar=("WORK", "PLACE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        name, place = arguments.work
        work(name, Path(place))
        return
    for factor in (1, 10):
        with tempfile.TemporaryDirectory() as place:
            row_bytes = 4 * (OBSERVATION + ACTION + 1)
            write_data(Path(place) / "data.hdf5", factor * arguments.megabytes * 10**6 // (EPISODE * row_bytes))
            for name in WORKS:
                command = [sys.executable, __file__, "--work", name, place]
                print(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout, end="", flush=True)


if __name__ == "__main__":
    main()
