"""A store larger than memory is mapped, not loaded: it opens, and drawing from it takes no memory with its size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.datasets.store import TaskStore
from orrery.datasets.windows import WindowSampler

from .stores import numbered_episode, write_store

SPEC = TaskSpec("toy/large", 1000, 23, 10_000)
EPISODE_ROWS = 10_001

DRAW = """
import sys, psutil
from orrery.datasets.store import TaskStore
from orrery.datasets.windows import WindowSampler
sampler = WindowSampler(TaskStore.open(sys.argv[1]), length=16, batch_size=64, seed=0)
sampler.batch(0)
for step in range(300):
    sampler.batch(step)
memory = psutil.Process().memory_info()
print(memory.rss - memory.shared)  # without the file's pages, which the kernel drops when it needs memory
"""


def grow(folder, num_bytes):
    """Turn a store of one episode into one of `num_bytes`, with a file of holes."""
    episodes = num_bytes // (EPISODE_ROWS * 4 * 1024)
    rows = folder / SPEC.slug / "rows.f32"
    os.truncate(rows, episodes * EPISODE_ROWS * 4 * 1024)
    if rows.stat().st_blocks * 512 > 10 * EPISODE_ROWS * 4 * 1024:
        pytest.skip("this file system keeps no holes in files")
    np.savez(
        folder / SPEC.slug / "episodes.npz",
        offsets=np.arange(episodes + 1) * EPISODE_ROWS,
        terminated=np.zeros(episodes, bool),
        returns=np.zeros(episodes),
    )
    stated = json.loads((folder / "store.json").read_text())
    stated["tasks"][0] |= {"episodes": episodes, "transitions": episodes * (EPISODE_ROWS - 1)}
    (folder / "store.json").write_text(json.dumps(stated))


@pytest.fixture
def folder(tmp_path):
    write_store(tmp_path, [(SPEC, [numbered_episode(SPEC, 0, EPISODE_ROWS - 1)])])
    assert len(TaskTable.from_json((tmp_path / "tasks.json").read_text())) == 1
    return tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="needs files with holes")
def test_a_store_larger_than_memory_and_swap_opens_and_is_drawn_from(folder):
    size = 2 * (psutil.virtual_memory().total + psutil.swap_memory().total)
    grow(folder, size)
    store = TaskStore.open(folder)
    assert store.num_bytes > size * 0.99
    batch = WindowSampler(store, length=16, batch_size=64, seed=0).batch(3)
    assert batch["observation"].shape == (64, 17, 1000)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("share", "at_random"), [(1.9, True), (2.1, False)])
def test_the_kernel_reads_ahead_of_windows_only_if_it_can_keep_the_store(folder, monkeypatch, share, at_random):
    store = TaskStore.open(folder)
    monkeypatch.setattr("orrery.datasets.windows.machine_memory", lambda: share * store.num_bytes)
    WindowSampler(store, length=16, batch_size=64, seed=0)
    (_, mapping) = Path("/proc/self/smaps").read_text().split(str(folder / SPEC.slug / "rows.f32"))
    flags = next(line for line in mapping.splitlines() if line.startswith("VmFlags:")).split()
    assert ("rr" in flags) == at_random


@pytest.mark.skipif(sys.platform != "linux", reason="needs files with holes")
def test_memory_stays_while_the_store_grows_ten_times(folder):
    private = []
    for size in (100_000_000, 1_000_000_000):
        grow(folder, size)
        command = [sys.executable, "-c", DRAW, str(folder)]
        ran = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
        private.append(min(json.loads(one.stdout) for one in ran))  # of one process it varies by 22 MB
    assert private[1] - private[0] < 20_000_000, private
