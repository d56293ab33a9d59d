"""What POWR's fit and mirror descent cost, in time and in memory: `python tests/benchmarks/powr.py`.

CartPole-like rows (4 components, Laplace kernel), float64, two threads. Prints one JSON line:

    step      CPU seconds of kernels, K'K, Cholesky, K'M and the solve for one step at n = 5000, m = 1000, A = 2;
              cold is the first of the process, warm the median of the others
    scaling   the same over n, m and the number of actions, one at a time
    memory    peak resident MiB of a process that takes one such step, by n: streaming, and keeping what fits in 1 GiB

CPU seconds count both threads, and are what a shared machine leaves comparable.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from orrery.stages.powr.actions import DiscreteActions
from orrery.stages.powr.evaluation import Centres, KernelBlocks, fit
from orrery.stages.powr.improvement import mirror_descent, uniform_logits
from orrery.stages.powr.kernels import StateKernel
from orrery.stages.powr.transitions import Transitions

REPEATS = 3


def make_rows(n: int, actions: int) -> Transitions:
    random = np.random.default_rng(0)
    state = random.normal(size=(n, 4))
    to = torch.from_numpy
    return Transitions(
        to(state),
        to(random.integers(actions, size=n)),
        to(state + 0.1 * random.normal(size=(n, 4))),
        torch.ones(n, dtype=torch.float64),
    )


def one_step(rows: Transitions, m: int, actions: int, cache_bytes: int = 2**30) -> None:
    """Fit to all rows and take one step of mirror descent, kernels included."""
    index = torch.from_numpy(np.random.default_rng(1).choice(len(rows), m, replace=False))
    kernel, choices = StateKernel.of("laplace", 1.0), DiscreteActions(actions)
    blocks = KernelBlocks(kernel, choices, Centres.of(rows, index), rows, cache_bytes=cache_bytes)
    model = fit(blocks, 1e-6, 1e-6)
    mirror_descent(blocks, model, uniform_logits(actions, rows.next_state_NO), [0.1], 0.99)


def seconds(n: int, m: int, actions: int) -> list[float]:
    """CPU seconds of `REPEATS` runs, the first of which may be cold."""
    rows, taken = make_rows(n, actions), []
    for _ in range(REPEATS):
        start = time.process_time()
        one_step(rows, m, actions)
        taken.append(time.process_time() - start)
    return taken


def measure_memory(n: int, cache_bytes: int) -> None:
    """Print this process's peak resident MiB after one step over n rows."""
    torch.set_num_threads(2)
    one_step(make_rows(n, 2), 1000, 2, cache_bytes)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    torch.set_num_threads(2)
    cold, *warm = seconds(5000, 1000, 2)

    def row(n: int, m: int, actions: int) -> float:
        return round(statistics.median(seconds(n, m, actions)), 3)

    scaling = {
        "n (m=1000, A=2)": {str(n): row(n, 1000, 2) for n in (2500, 5000, 10000, 20000)},
        "m (n=5000, A=2)": {str(m): row(5000, m, 2) for m in (250, 500, 1000, 2000)},
        "A (n=5000, m=1000)": {str(a): row(5000, 1000, a) for a in (1, 2, 4, 8)},
    }
    memory: dict[str, dict[str, float]] = {}
    for name, cache_bytes in (("streaming", 0), ("kept", 2**30)):
        memory[name] = {}
        for n in (5000, 20000, 80000):
            command = [sys.executable, __file__, "memory", str(n), str(cache_bytes)]
            found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            memory[name][str(n)] = round(float(found))
    step = {"cold": round(cold, 3), "warm": round(statistics.median(warm), 3)}
    report = {"benchmark": "powr", "threads": 2, "step_cpu_seconds": step, "scaling_cpu_seconds": scaling}
    print(json.dumps({**report, "peak_mib": memory}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        measure_memory(int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
