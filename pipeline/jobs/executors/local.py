"""Jobs in processes of this machine, as many at once as it has GPUs or cores for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...accelerator import wants_gpu
from ...errors import StageError
from ...stage import Context
from ..executor import Executor, JobResources
from ..process import JobProcess


class LocalExecutor(Executor):
    """A process per job; as many at once as there are slots, each of which belongs to a GPU or to none."""

    poll_seconds = 0.1

    def __init__(self, options: Any, resources: JobResources, context: Context) -> None:
        devices = local_slots(resources)
        self.slots = len(devices)
        self._resources = resources
        self._free = list(reversed(devices))
        self._running: dict[Path, tuple[JobProcess, str]] = {}

    def submit(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            device = self._free.pop()
            environment = {**self._resources.environment, "CUDA_VISIBLE_DEVICES": device}
            process = JobProcess(folder, limit_seconds=self._resources.limit_seconds, environment=environment)
            self._running[folder] = process, device

    def ended(self, folder: Path) -> str | None:
        process, device = self._running[folder]
        if not process.poll():
            return None
        del self._running[folder]
        self._free.append(device)
        return ""

    def close(self) -> None:
        processes = [process for process, _ in self._running.values()]
        for process in processes:
            process.stop()
        for process in processes:
            process.wait()
        self._running.clear()

    @classmethod
    def jobs_here(cls, options: Any, resources: JobResources) -> int:
        return len(local_slots(resources))


def visible_gpus() -> list[str]:
    """CUDA_VISIBLE_DEVICES of each GPU that this process may use."""
    if (listed := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [device.strip() for device in listed.split(",") if device.strip()]
    import torch

    return [str(device) for device in range(torch.cuda.device_count())]


def local_slots(resources: JobResources) -> list[str]:
    """CUDA_VISIBLE_DEVICES of every job that may run at once on this machine; empty strings where they use no GPU."""
    devices = [] if resources.accelerator == "cpu" else visible_gpus() * resources.jobs_per_gpu
    if wants_gpu(resources.accelerator) and not devices:
        raise StageError("jobs need a GPU, but this machine has none; use accelerator=cpu")
    slots = devices or [""] * max(resources.workers // resources.cpus, 1)
    return slots[: resources.parallel_jobs or None]
