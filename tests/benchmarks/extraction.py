"""Policies trained as one program against one by one: `python tests/benchmarks/extraction.py --sizes 1 --members 30`.

Each member is a policy of its own task on one frozen model (30 tasks of 24 + 6): horizon 16, batch 64, published
networks, one pass of four critic minibatches. `batched` trains all members in one update, `one_by_one` updates programs
of one member in turn; both do the same work on the same numbers. Prints one JSON line per model size and number of
members: member-iterations per second (of CPU time on a CPU, of wall time on a GPU; medians over rounds that alternate)
and peak memory: of the device on a GPU, otherwise resident in this process, which only grows from line to line.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.stages.extraction.config import FirstOrderConfig
from orrery.stages.extraction.first_order import FirstOrderExtraction, Member
from orrery.stages.extraction.starts import Starts
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.networks import WorldModel

TASKS, STARTS, ROUNDS = 30, 256, 3
TABLE = TaskTable([TaskSpec(f"bench/{i}", 24, 6, 500) for i in range(TASKS)])


def programs(
    size: str, members: int, device: str, compiled: bool
) -> tuple[FirstOrderExtraction, Sequence[FirstOrderExtraction]]:
    """All members as one program, and a program for each."""
    torch.manual_seed(0)
    model = WorldModel(WorldModelConfig(size=size), TABLE).freeze().to(device)
    task = torch.arange(TASKS, device=device)[:, None].expand(TASKS, STARTS)
    latents = model.encode(torch.randn(TASKS, STARTS, 24, device=device), task)
    actions = torch.rand(TASKS, STARTS, 6, device=device) * 2 - 1
    rows = {k: k for k in range(TASKS)}
    starts = Starts(latents, actions, latents[:, :16], torch.ones(TASKS, device=device), rows)
    config = FirstOrderConfig(batch_size=64, critic_passes=1, compile=compiled)
    every = [Member("pwm", f"bench/{m % TASKS}", m // TASKS, 0.0, True) for m in range(members)]
    build = [FirstOrderExtraction(model, starts, part, config, 1000, 0) for part in (every, *([m] for m in every))]
    return build[0], build[1:]


def seconds(device: str, update: Callable[[], object]) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    start = clock()
    update()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def measure(size: str, members: int, device: str, compiled: bool) -> dict[str, object]:
    batched, alone = programs(size, members, device, compiled)
    times: dict[str, list[float]] = {"batched": [], "one_by_one": []}
    for step in range(ROUNDS + 1):
        for name, update in (
            ("batched", lambda step=step: batched.update(step)),
            ("one_by_one", lambda step=step: [program.update(step) for program in alone]),
        ):
            taken = seconds(device, update)
            if step > 0:
                times[name].append(taken)
    rate = {name: members / statistics.median(values) for name, values in times.items()}
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = resident if device == "cpu" else torch.cuda.max_memory_allocated()
    return {
        "benchmark": "extraction",
        "device": device,
        "size": size,
        "members": members,
        "member_iterations_per_second": {name: round(value, 2) for name, value in rate.items()},
        "ratio": round(rate["batched"] / rate["one_by_one"], 2),
        "peak_memory_gb": round(peak / 1e9, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["1", "5"], help="model sizes; 48 for a GPU")
    parser.add_argument("--members", nargs="+", type=int, default=[1, 8, 30])
    parser.add_argument("--compile", action="store_true", help="compile both, for a GPU")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for size in arguments.sizes:
        for members in arguments.members:
            print(json.dumps(measure(size, members, device, arguments.compile)), flush=True)


if __name__ == "__main__":
    main()
