"""Hardware of the machine that writes the report. Imports no torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path


def hardware() -> dict[str, str]:
    """Return processor, usable cores, memory and GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = {"processor": _processor(), "cores": str(cores)}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    return {**found, "GPU": _gpus() or "none", "system": f"{platform.system()} {platform.machine()}"}


def hardware_line() -> str:
    """Return the hardware in one short line."""
    facts = hardware()
    gpu = "no GPU" if facts["GPU"] == "none" else facts["GPU"]
    return f"{facts['cores']} CPU cores ({facts['processor']}), {gpu}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


def _gpus() -> str:
    """Names of the GPUs as nvidia-smi lists them; empty without GPUs."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return ""
    command = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(line.strip() for line in listed.splitlines() if line.strip())
