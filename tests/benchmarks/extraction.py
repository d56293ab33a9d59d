"""Policies trained as one program against one by one: `python tests/benchmarks/extraction.py --sizes 1 --members 30`.

Each member is a policy of its own task on one frozen model (30 tasks of 24 + 6): horizon 16, batch 64, published
networks, one pass of four critic minibatches; with `--algorithm svg` an update of critics and actor at its defaults.
`batched` trains all members in one update, `one_by_one` updates programs of one member in turn; both do the same work
on the same numbers. Prints one JSON line per model size and number of members: member-iterations per second (of CPU
time on a CPU, of wall time on a GPU; medians over rounds that alternate), and the peak memory of either in a process
of its own: of the device on a GPU, otherwise resident, less what the libraries take.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.stages.extraction.config import FirstOrderConfig, SvgConfig
from orrery.stages.extraction.first_order import FirstOrderExtraction
from orrery.stages.extraction.program import PolicySpec, Program
from orrery.stages.extraction.starts import StartLatents
from orrery.stages.extraction.svg import SvgExtraction
from orrery.stages.extraction.transitions import LatentTransitions
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.networks import WorldModel

TASKS, STARTS = 30, 256
TABLE = TaskTable([TaskSpec(f"bench/{i}", 24, 6, 500) for i in range(TASKS)])
MODES = ("batched", "one_by_one")


def programs(mode: str, size: str, members: int, device: str, arguments: argparse.Namespace) -> Sequence[Program]:
    """All members as one program, or a program for each."""
    torch.manual_seed(0)
    model = WorldModel(WorldModelConfig(size=size), TABLE).freeze().to(device)
    task = torch.arange(TASKS, device=device)[:, None].expand(TASKS, STARTS)
    latents = model.encode(torch.randn(TASKS, STARTS, 24, device=device), task)
    actions = torch.rand(TASKS, STARTS, 6, device=device) * 2 - 1
    rows = {k: k for k in range(TASKS)}
    starts = StartLatents(latents, actions, latents[:, :16], torch.ones(TASKS, device=device), rows)
    every = [PolicySpec(arguments.algorithm, f"bench/{m % TASKS}", m // TASKS, 0.0, True) for m in range(members)]
    parts = [every] if mode == "batched" else [[member] for member in every]
    if arguments.algorithm == "svg":
        transitions = one_episode_each(latents, actions)
        return [SvgExtraction(model, starts, transitions, part, SvgConfig(updates=1), 1000, 0) for part in parts]
    config = FirstOrderConfig(batch_size=64, critic_passes=1, compile=arguments.compile)
    return [FirstOrderExtraction(model, starts, part, config, 1000, 0) for part in parts]


def one_episode_each(latents: torch.Tensor, actions: torch.Tensor) -> LatentTransitions:
    """An episode of each task, with random rewards."""
    device = latents.device
    left = torch.arange(STARTS - 1, -1, -1, device=device).repeat(TASKS)
    first = torch.arange(TASKS, device=device) * (STARTS - 1)
    returns, ends = torch.rand(len(left), device=device).double(), torch.zeros(len(left), device=device).bool()
    frames = left.nonzero()[:, 0]
    count = torch.full((TASKS,), STARTS - 1, device=device)
    return LatentTransitions(latents.flatten(0, 1), actions.flatten(0, 1), returns, left, ends, frames, first, count)


def seconds(device: str, update: Callable[[], object]) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    start = clock()
    update()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def update_all(built: Sequence[Program], step: int) -> None:
    for program in built:
        program.update(step)


def rates(size: str, members: int, device: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Policy updates per second."""
    built = {mode: programs(mode, size, members, device, arguments) for mode in MODES}
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    for step in range(arguments.rounds + 1):
        for mode in MODES:
            taken = seconds(device, lambda mode=mode, step=step: update_all(built[mode], step))
            if step > 0:
                times[mode].append(taken)
    return {mode: members / statistics.median(values) for mode, values in times.items()}


def peak(mode: str, size: str, members: int, device: str, arguments: argparse.Namespace) -> float:
    """GB that an update takes at most, in this process, which has done nothing else."""
    before = psutil.Process().memory_info().rss
    update_all(programs(mode, size, members, device, arguments), 0)
    # Not ru_maxrss, which begins with that of the process that started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    resident = int(status["VmHWM"].split()[0]) * 1024 - before
    return (resident if device == "cpu" else torch.cuda.max_memory_allocated()) / 1e9


def measure(size: str, members: int, device: str, arguments: argparse.Namespace) -> dict[str, object]:
    rate = rates(size, members, device, arguments)
    memory = {}
    for mode in MODES:
        command = [sys.executable, __file__, "--peak", mode, "--sizes", size, "--members", str(members)]
        command += ["--algorithm", arguments.algorithm, *(["--compile"] if arguments.compile else [])]
        memory[mode] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {
        "benchmark": "extraction",
        "algorithm": arguments.algorithm,
        "device": device,
        "size": size,
        "members": members,
        "member_iterations_per_second": {mode: round(value, 2) for mode, value in rate.items()},
        "ratio": round(rate["batched"] / rate["one_by_one"], 2),
        "peak_memory_gb": {mode: round(value, 2) for mode, value in memory.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", help="model sizes; 1 and 5, on a GPU 48 too, unless given")
    parser.add_argument("--members", nargs="+", type=int, default=[1, 8, 30])
    parser.add_argument("--algorithm", choices=["pwm", "svg"], default="pwm")
    parser.add_argument("--rounds", type=int, default=3, help="timed updates of each")
    parser.add_argument("--compile", action="store_true", help="compile both, for a GPU")
    parser.add_argument("--peak", choices=MODES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.peak:
        (size,), (members,) = arguments.sizes, arguments.members
        print(peak(arguments.peak, size, members, device, arguments))
        return
    for size in arguments.sizes or (["1", "5"] if device == "cpu" else ["1", "5", "48"]):
        for members in arguments.members:
            print(json.dumps(measure(size, members, device, arguments)), flush=True)


if __name__ == "__main__":
    main()
