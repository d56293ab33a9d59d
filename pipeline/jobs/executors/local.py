"""Jobs in processes of this machine, as many at once as it has GPUs or cores for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ...accelerator import wants_gpu
from ...errors import StageError
from ..config import FanoutConfig
from ..executor import JobResources
from ..process import JobProcess


class LocalExecutor:
    """A process per job; as many at once as there are slots, each of which belongs to a GPU or to none."""

    poll_seconds = 0.1

    def __init__(self, needs: JobResources, devices: Sequence[str]) -> None:
        """Args:
        devices: CUDA_VISIBLE_DEVICES of each slot; empty strings on a CPU.
        """
        self.slots: int | None = len(devices)
        self._needs = needs
        self._free = list(reversed(devices))
        self._running: dict[Path, tuple[JobProcess, str]] = {}

    def submit(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            device = self._free.pop()
            environment = {**self._needs.environment, "CUDA_VISIBLE_DEVICES": device}
            process = JobProcess(folder, limit_seconds=self._needs.limit_seconds, environment=environment)
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


def visible_gpus() -> list[str]:
    """CUDA_VISIBLE_DEVICES of each GPU that this process may use."""
    if (listed := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [device.strip() for device in listed.split(",") if device.strip()]
    import torch

    return [str(device) for device in range(torch.cuda.device_count())]


def local_slots(config: FanoutConfig, accelerator: str, jobs_for_cores: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of every job that may run at once on this machine; empty strings where they use no GPU."""
    devices = [] if accelerator == "cpu" else visible_gpus() * config.jobs_per_gpu
    if wants_gpu(accelerator) and not devices:
        raise StageError("jobs need a GPU, but this machine has none; use accelerator=cpu")
    slots = devices or [""] * max(jobs_for_cores, 1)
    return slots[: config.parallel_jobs or None]
