"""How long one step takes on one CPU core."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

CALLS = 2000
"""Measured at most; p99 then rests on the 20 slowest."""
SECONDS = 2.0
"""After which fewer calls have to do."""
WARM_UP = 50


@dataclass(frozen=True)
class Latency:
    """Wall-clock microseconds per call."""

    p50_us: float
    p99_us: float
    calls: int


def measure(call: Callable[[], object]) -> Latency:
    """Percentiles over repeated calls, one at a time."""
    for _ in range(WARM_UP):
        call()
    taken: list[int] = []
    end = time.perf_counter() + SECONDS
    while len(taken) < CALLS and time.perf_counter() < end:
        start = time.perf_counter_ns()
        call()
        taken.append(time.perf_counter_ns() - start)
    p50, p99 = np.percentile(taken, [50, 99]) / 1000
    return Latency(float(p50), float(p99), len(taken))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes on one core meanwhile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
