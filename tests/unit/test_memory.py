"""Memory that an update frees serves the next one."""

import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from orrery.pipeline.memory import reuse_freed_memory

def update():
    arrays = [np.ones(500_000) for _ in range(20)]  # 4 MB each

reuse_freed_memory()
for _ in range(3):
    update()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    update()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_that_an_update_frees_is_not_fetched_from_the_system_again():
    # Without it, up to 195,000 pages, depending on where the heap lies in a process.
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
        assert int(done.stdout) < 1000
