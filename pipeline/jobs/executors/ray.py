"""Jobs as tasks of a Ray cluster: an existing one, or one that is started on this machine and ends with the command."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...accelerator import wants_gpu
from ...errors import StageError
from ...stage import Context
from ..executor import Executor, JobResources
from ..process import GRACE_SECONDS, JobProcess
from .local import local_slots

CONNECT_SECONDS = 5.0
HEALTH_SECONDS = 20.0


@dataclass(frozen=True)
class RayOptions:
    """The Ray cluster."""

    address: str = ""
    """Address of a running cluster: host:port, ray://host:port or auto. Empty: start one on this machine."""


class RayExecutor(Executor):
    """Ray queues the jobs and gives each its GPU; they end with this command."""

    Options = RayOptions
    poll_seconds = 0.1

    def __init__(self, options: RayOptions, resources: JobResources, context: Context) -> None:
        import ray

        self.slots = resources.parallel_jobs or None
        self._started_here = not ray.is_initialized()
        if self._started_here:
            connect(options.address)
        has_gpu = ray.cluster_resources().get("GPU", 0) > 0
        if wants_gpu(resources.accelerator) and not has_gpu:
            raise StageError("jobs need a GPU, but no node of the Ray cluster has one; use accelerator=cpu")
        share = 1 / resources.jobs_per_gpu if has_gpu and resources.accelerator != "cpu" else 0
        self._resources = resources
        self._watch = ray.remote(num_cpus=resources.cpus, num_gpus=share, max_retries=0)(_watch)
        self._running: dict[Path, Any] = {}

    def submit(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            self._running[folder] = self._watch.remote(
                str(folder.absolute()), self._resources.limit_seconds, self._resources.environment
            )

    def ended(self, folder: Path) -> str | None:
        import ray

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
        import ray

        for reference in self._running.values():
            ray.cancel(reference, force=False)
        if self._running:
            ray.wait(list(self._running.values()), num_returns=len(self._running), timeout=GRACE_SECONDS + 5)
        if self._started_here:
            ray.shutdown()

    @classmethod
    def check_machine(cls, options: RayOptions, resources: JobResources, group: str) -> None:
        if find_spec("ray") is None:
            raise StageError(
                f"{group}executor=ray needs Ray, which is not installed: pip install 'orrery[ray]', or use another "
                "executor"
            )
        if ":" in options.address:
            check_reachable(options.address)

    @classmethod
    def is_local(cls, options: RayOptions) -> bool:
        return not options.address

    @classmethod
    def jobs_here(cls, options: RayOptions, resources: JobResources) -> int:
        return 1 if options.address else len(local_slots(resources))


def connect(address: str) -> None:
    """Join the cluster at `address`, or start one here where it is empty.

    Raises:
        StageError: it does not answer.
    """
    import ray

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


def check_reachable(address: str) -> None:
    """Raise a StageError within seconds if nothing listens at host:port; Ray itself would try for two minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise StageError(
            f"fanout.options.address={address}: no connection ({error}). Start the cluster (`ray start --head`), "
            "correct the address, or leave it empty to start one on this machine"
        ) from error


def _check_healthy(address: str) -> None:
    """Raise a StageError where something listens that is no Ray cluster."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        healthy = subprocess.run(command, timeout=HEALTH_SECONDS, capture_output=True, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        healthy = False
    if not healthy:
        raise StageError(f"fanout.options.address={address}: the server there is not a Ray cluster")


def _watch(folder: str, limit_seconds: float, environment: dict[str, str]) -> None:
    """Runs in a worker of Ray, which interrupts it when the job is cancelled."""
    process = JobProcess(Path(folder), limit_seconds=limit_seconds, environment=environment)
    try:
        process.wait()
    except KeyboardInterrupt:
        process.stop()
        process.wait()
        raise
