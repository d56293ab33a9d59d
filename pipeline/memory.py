"""Memory of this machine: how much there is, and how the system treats it."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_KEPT, _GROWTH, _LARGEST = 2**30, 2**26, 2**25
"""Bytes: freed memory that is kept, growth at once, and the largest block that is reused (glibc's own limit)."""


def machine_memory() -> float:
    """Bytes of memory that this process may use: the machine's, or its control group's where that is less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return total if limit == "max" else min(total, int(limit))


def reuse_freed_memory() -> None:
    """Let glibc reuse up to 1 GiB of freed memory instead of returning it to the system.

    An update allocates and frees the same megabytes each time. Fetching them anew, page by page, takes 2 to 9% of the
    CPU time of an update of a world model. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return
    for parameter, value in ((_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _GROWTH), (_MMAP_THRESHOLD, _LARGEST)):
        mallopt(parameter, value)


def read_at_random(address: int, size: int) -> None:
    """Let the kernel read only the touched pages of a mapped file, `size` bytes from `address` on.

    By default it reads ahead, 128 kB to 8 MB at each touch of a page, as the disk is set up. Systems other than Linux
    are left as they are.
    """
    if hasattr(mmap, "MADV_DONTDUMP"):  # Linux alone has it
        ctypes.CDLL(None).madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), mmap.MADV_RANDOM)
