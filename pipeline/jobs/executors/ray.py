"""Jobs as tasks of a Ray cluster: an existing one, or one that is started on this machine and ends with the command."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...accelerator import wants_gpu
from ...errors import StageError
from ...logging import LOGGER_NAME
from ...stage import Context
from ..executor import Executor, JobResources
from ..job import read_status
from ..process import GRACE_SECONDS, JobProcess
from .local import local_slots

CONNECT_SECONDS = 5.0
HEALTH_SECONDS = 20.0

CRASHED = ("Starting Ray client server failed", "ZombieProcess")
"""What the head of a cluster answers where the process for a ray:// client crashed before it started."""

CANCEL_SECONDS = 3.0
"""Between requests to cancel jobs that have not ended."""

NODES_SECONDS = 5.0
"""Between looks at which nodes are alive."""

VISIBLE_SECONDS = 60.0
"""For a node to start a process of Ray and look for the run folder."""


@dataclass(frozen=True)
class RayOptions:
    """The Ray cluster, and the resources of each job."""

    address: str = ""
    """Address of a running cluster: host:port (on one of its nodes), ray://host:port (from elsewhere) or auto. Empty:
    start one on this machine."""
    mem_gb: float = 0.0
    """Memory that Ray reserves per job in GB; 0 = none."""
    resources: dict[str, float] = field(default_factory=dict)
    """Custom resources per job: {a100: 1}."""
    runtime_env: dict[str, Any] = field(default_factory=dict)
    """Ray's runtime environment, for nodes that lack what jobs need: {env_vars: {PYTHONPATH: /lab/code}}."""


class RayExecutor(Executor):
    """Ray queues the jobs and gives each its GPU; they end with this command."""

    Options = RayOptions
    poll_seconds = 0.1

    def __init__(self, options: RayOptions, resources: JobResources, context: Context) -> None:
        import ray

        self.slots = resources.parallel_jobs or None
        self._started_here = not ray.is_initialized()
        if self._started_here:
            connect(options)
            if options.address:
                _check_nodes(context.jobs.absolute())
        has_gpu = ray.cluster_resources().get("GPU", 0) > 0
        if wants_gpu(resources.accelerator) and not has_gpu:
            raise StageError("jobs need a GPU, but no node of the Ray cluster has one; use accelerator=cpu")
        share = 1 / resources.jobs_per_gpu if has_gpu and resources.accelerator != "cpu" else 0
        self._resources = resources
        self._watch = ray.remote(
            num_cpus=resources.cpus,
            num_gpus=share,
            memory=options.mem_gb * 2**30,
            resources=options.resources,
            max_retries=0,
        )(_watch)
        self._running: dict[Path, Any] = {}
        self._lost: set[Path] = set()
        self._looked = time.monotonic()

    def submit(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            self._running[folder] = self._watch.remote(
                str(folder.absolute()), self._resources.limit_seconds, self._resources.environment
            )

    def ended(self, folder: Path) -> str | None:
        import ray

        reference = self._running[folder]
        ready, _ = ray.wait([reference], timeout=0)
        if not ready and folder not in self._lost_with_hosts():
            return None
        del self._running[folder]
        if not ready:
            return f"Ray: lost {read_status(folder).place}; the node is dead"
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            return f"Ray: {' '.join(str(error).split())}"
        return ""

    def _lost_with_hosts(self) -> set[Path]:
        """Jobs whose host Ray has given up. It waits for their answers until the connections time out (7 min)."""
        import ray

        if time.monotonic() - self._looked > NODES_SECONDS:
            alive = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
            running = {folder: status for folder in self._running if (status := read_status(folder)).state == "running"}
            self._lost = {folder for folder, status in running.items() if status.host not in alive}
            self._looked = time.monotonic()
        return self._lost

    def close(self) -> None:
        import ray

        left, end = list(self._running.values()), time.monotonic() + GRACE_SECONDS + 5
        while left and time.monotonic() < end:  # again and again: an interrupt may be lost inside of a library
            for reference in left:
                ray.cancel(reference, force=False)
            _, left = ray.wait(left, num_returns=len(left), timeout=CANCEL_SECONDS)
        if self._started_here:
            ray.shutdown()

    @classmethod
    def check_machine(cls, options: RayOptions, resources: JobResources, group: str) -> None:
        if find_spec("ray") is None:
            raise StageError(
                f"{group}executor=ray needs Ray, which is not installed: pip install 'orrery[ray]', or use another "
                "executor"
            )
        if options.address:
            import ray

            connect(options)
            try:
                _check_resources(options, resources, group)
            finally:
                ray.shutdown()

    @classmethod
    def is_local(cls, options: RayOptions) -> bool:
        return not options.address

    @classmethod
    def jobs_here(cls, options: RayOptions, resources: JobResources) -> int:
        return 1 if options.address else len(local_slots(resources))


def connect(options: RayOptions) -> None:
    """Join the cluster at the address, or start one here where it is empty.

    Raises:
        StageError: it does not answer, or has another version of Ray or Python.
    """
    import ray

    address = options.address
    settings: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    settings["runtime_env"] = options.runtime_env or None
    # Ray answers SIGTERM by leaving; that is for us to decide.
    former = signal.getsignal(signal.SIGTERM)
    try:
        if not address:
            ray.init(include_dashboard=False, **settings)
            return
        if ":" in address:
            check_reachable(address)
        if ":" in address and "://" not in address:
            _check_healthy(address)
        _init(address, settings)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise StageError(
            f"cannot connect to a Ray cluster at {address or 'this machine'}: {_one_line(error)}"
        ) from error
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, former)


def _init(address: str, settings: Mapping[str, Any], attempts: int = 3) -> None:
    """Join a cluster. For ray:// addresses, its head forks a process per client beside running threads; on a busy head,
    some of these processes crash before they start, and the next attempt succeeds."""
    import ray

    for attempt in range(1, attempts + 1):
        try:
            ray.init(address=address, **settings)
            return
        except ConnectionAbortedError as error:
            if attempt == attempts or not any(sign in str(error) for sign in CRASHED):
                raise
            log = logging.getLogger(LOGGER_NAME)
            log.warning("ray: the head at %s refused the connection; connecting again", address)


def _check_resources(options: RayOptions, resources: JobResources, group: str) -> None:
    """Raise a StageError if no node that is there has what a job needs: Ray would wait for one without end."""
    import ray

    needed = {"CPU": float(resources.cpus), "memory": options.mem_gb * 2**30, **options.resources}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0) >= amount for name, amount in needed.items()) for node in nodes):
        most = {name: max(node.get(name, 0) for node in nodes) for name in needed}
        raise StageError(
            f"{group}executor=ray: no node of the cluster has what a job needs: {_amounts(needed)}; the largest have "
            f"{_amounts(most)}. Correct {group}options or {group}cpus_per_job"
        )


def _amounts(amounts: Mapping[str, float]) -> str:
    scaled = {name: amount / 2**30 if name == "memory" else amount for name, amount in amounts.items()}
    return ", ".join(f"{name} {amount:g}{' GB' * (name == 'memory')}" for name, amount in scaled.items() if amount)


def _check_nodes(folder: Path) -> None:
    """Raise a StageError where a node of the cluster does not see the jobs' folder, or cannot run them."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(_sees)
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    seen = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(str(folder))
        for node in nodes
    ]
    try:
        sees = ray.get(seen, timeout=VISIBLE_SECONDS)
    except ray.exceptions.RayError as error:
        raise StageError(
            f"a node of the Ray cluster cannot run jobs: {_one_line(error)}. Each needs this version of Orrery and of "
            "its plugins; fanout.options.runtime_env can bring what is missing"
        ) from error
    if blind := [address for address, sees_it in zip(nodes.values(), sees, strict=True) if not sees_it]:
        raise StageError(
            f"{folder} is not visible on nodes {', '.join(sorted(blind))} of the Ray cluster; set run_dir to a folder "
            "on a disk that all nodes share"
        )


def _sees(folder: str) -> bool:
    return Path(folder).is_dir()


def _one_line(error: Exception) -> str:
    """What an error of Ray says, and what caused it where it does not."""
    cause = error.__cause__ or error.__context__
    said = f"{error}: {cause}" if cause else str(error)
    return " ".join(said.split())


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
        answer = subprocess.run(command, timeout=HEALTH_SECONDS, capture_output=True, text=True, check=False)
        healthy, said = answer.returncode == 0, answer.stderr.strip().splitlines()[-1:]
    except subprocess.TimeoutExpired:
        healthy, said = False, [f"no answer in {HEALTH_SECONDS:g} s"]
    if not healthy:
        raise StageError(f"fanout.options.address={address} cannot be used as a Ray cluster: {' '.join(said)}")


def _watch(folder: str, limit_seconds: float, environment: dict[str, str]) -> None:
    """Runs in a worker of Ray, which interrupts it when the job is cancelled."""
    # Ray cancels by SIGINT, which its workers ignore if a script started it in the background (`ray start ... &`).
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = JobProcess(Path(folder), limit_seconds=limit_seconds, environment=environment)
    try:
        process.wait()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # further requests change nothing
        process.stop()
        process.wait()
        raise
