"""Jobs as tasks of a Ray cluster: an existing one, or one that is started on this machine and ends with the command."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from ...accelerator import wants_gpu
from ...errors import StageError
from ..config import FanoutConfig, check_reachable
from ..executor import JobResources
from ..process import GRACE_SECONDS, JobProcess

HEALTH_SECONDS = 20.0


class RayExecutor:
    """Ray queues the jobs and gives each its GPU; they end with this command."""

    slots: int | None
    poll_seconds = 0.1

    def __init__(self, config: FanoutConfig, needs: JobResources, accelerator: str) -> None:
        self.slots = config.parallel_jobs or None
        self._started_here = not ray.is_initialized()
        if self._started_here:
            connect(config.ray_address)
        has_gpu = ray.cluster_resources().get("GPU", 0) > 0
        if wants_gpu(accelerator) and not has_gpu:
            raise StageError("jobs need a GPU, but no node of the Ray cluster has one; use accelerator=cpu")
        share = 1 / config.jobs_per_gpu if has_gpu and accelerator != "cpu" else 0
        self._needs = needs
        self._watch = ray.remote(num_cpus=needs.cpus, num_gpus=share, max_retries=0)(_watch)
        self._running: dict[Path, Any] = {}

    def submit(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            self._running[folder] = self._watch.remote(
                str(folder.absolute()), self._needs.limit_seconds, self._needs.environment
            )

    def ended(self, folder: Path) -> str | None:
        reference = self._running[folder]
        ready, _ = ray.wait([reference], timeout=0)
        if not ready:
            return None
        del self._running[folder]
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            return f"Ray: {' '.join(str(error).split())}"
        return ""

    def close(self) -> None:
        for reference in self._running.values():
            ray.cancel(reference, force=False)
        if self._running:
            ray.wait(list(self._running.values()), num_returns=len(self._running), timeout=GRACE_SECONDS + 5)
        if self._started_here:
            ray.shutdown()


def connect(address: str) -> None:
    """Join the cluster at `address`, or start one here where it is empty.

    Raises:
        StageError: it does not answer.
    """
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    # Ray answers SIGTERM by leaving; that is for us to decide.
    former = signal.getsignal(signal.SIGTERM)
    try:
        if not address:
            ray.init(include_dashboard=False, **options)
            return
        if ":" in address:
            check_reachable(address)
        if ":" in address and "://" not in address:
            _check_healthy(address)
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError) as error:
        raise StageError(f"cannot connect to a Ray cluster at {address or 'this machine'}: {error}") from error
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, former)


def _check_healthy(address: str) -> None:
    """Raise a StageError where something listens that is no Ray cluster."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        healthy = subprocess.run(command, timeout=HEALTH_SECONDS, capture_output=True, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        healthy = False
    if not healthy:
        raise StageError(f"fanout.ray_address={address}: the server there is not a Ray cluster")


def _watch(folder: str, limit_seconds: float, environment: dict[str, str]) -> None:
    """Runs in a worker of Ray, which interrupts it when the job is cancelled."""
    process = JobProcess(Path(folder), limit_seconds=limit_seconds, environment=environment)
    try:
        process.wait()
    except KeyboardInterrupt:
        process.stop()
        process.wait()
        raise
