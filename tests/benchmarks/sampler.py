"""Window sampling against TorchRL's SliceSampler, side by side in one run: `python tests/benchmarks/sampler.py`.

1M transitions of 39 + 6 + 1 floats in episodes of 500, batches of 1024 windows of 17 observations, one thread. Ours
draws from ten tasks of five different widths and returns the padded multi-task batch; TorchRL draws from one task
(observation, action and reward stored apart, trajectory ends cached), which is less work. Prints one JSON line:
batches per second of CPU time, median over rounds that alternate between the two.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from orrery.datasets.schema import TaskSpec
from orrery.datasets.store import TaskStore
from orrery.datasets.windows import WindowSampler
from random_store import write_random_store
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, SliceSampler, TensorDictReplayBuffer

TRANSITIONS, EPISODE, BATCH, LENGTH = 1_000_000, 500, 1024, 17
SHAPES = [(39, 6), (39, 4), (24, 6), (17, 6), (39, 4), (24, 6), (5, 1), (39, 4), (39, 4), (24, 6)]
ROUNDS, ROUND_SECONDS = 9, 0.5


def our_sampler(store: TaskStore) -> Callable[[int], object]:
    return WindowSampler(store, length=LENGTH - 1, batch_size=BATCH, seed=0).batch


def slice_sampler(folder: Path) -> Callable[[int], object]:
    """One task, all columns at their full width."""
    buffer = TensorDictReplayBuffer(
        storage=LazyMemmapStorage(TRANSITIONS, scratch_dir=folder),
        sampler=SliceSampler(slice_len=LENGTH, traj_key="episode", cache_values=True, strict_length=True),
        batch_size=BATCH * LENGTH,
    )
    for start in range(0, TRANSITIONS, 100_000):
        rows = torch.arange(start, start + 100_000)
        buffer.extend(
            TensorDict(
                {
                    "observation": torch.randn(len(rows), 39),
                    "action": torch.randn(len(rows), 6),
                    "reward": torch.randn(len(rows)),
                    "episode": rows // EPISODE,
                },
                batch_size=[len(rows)],
            )
        )
    return lambda step: buffer.sample().view(BATCH, LENGTH)


def rate(draw: Callable[[int], object], first: int) -> tuple[float, int]:
    """Batches per second of CPU time over one round, and how many they were."""
    step, start = first, time.process_time()
    while (seconds := time.process_time() - start) < ROUND_SECONDS:
        draw(step)
        step += 1
    return (step - first) / seconds, step - first


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        specs = [TaskSpec(f"bench/task{i}", o, a, EPISODE) for i, (o, a) in enumerate(SHAPES)]
        store = write_random_store(Path(folder) / "orrery", specs, TRANSITIONS)
        candidates = {
            "orrery_in_memory": our_sampler(store.load()),
            "orrery_mapped": our_sampler(store),
            "torchrl_slice_sampler": slice_sampler(Path(folder) / "torchrl"),
        }
        rates: dict[str, list[float]] = {name: [] for name in candidates}
        drawn = dict.fromkeys(candidates, 0)
        for round_ in range(ROUNDS + 1):
            for name, draw in candidates.items():
                value, count = rate(draw, drawn[name])
                drawn[name] += count
                if round_ > 0:  # the first fills caches
                    rates[name].append(value)
        median = {name: round(statistics.median(values), 1) for name, values in rates.items()}
        report: dict[str, object] = {"benchmark": "sampler", "batches_per_cpu_second": median}
        for name in ("orrery_in_memory", "orrery_mapped"):
            ratios = [a / b for a, b in zip(rates[name], rates["torchrl_slice_sampler"], strict=True)]
            report[f"{name}_ratio"] = {
                "median": round(statistics.median(ratios), 2),
                "min": round(min(ratios), 2),
                "max": round(max(ratios), 2),
            }
        print(json.dumps(report))


if __name__ == "__main__":
    main()
