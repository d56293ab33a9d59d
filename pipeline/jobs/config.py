"""How a stage's work is split into jobs and where they run, and whether that can be had on this machine."""

from __future__ import annotations

import shutil
import socket
from dataclasses import dataclass, field
from importlib.util import find_spec

from ..accelerator import check_gpu, wants_gpu
from ..config.checks import check_choices, check_counts, check_not_negative
from ..errors import ConfigError, StageError

CONNECT_SECONDS = 5.0
EXECUTORS = ("inline", "local", "slurm", "ray")
CLUSTERS = ("slurm", "local", "debug")


@dataclass(frozen=True)
class SlurmConfig:
    """Resources of each SLURM job."""

    partition: str = ""
    """Partition. Empty: the cluster's default."""
    gpus: int = 0
    """GPUs per job."""
    mem_gb: float = 0.0
    """Memory per job in GB; 0 = the cluster's default."""
    options: dict[str, str] = field(default_factory=dict)
    """Other sbatch options by long name: {account: lab, constraint: a100}."""
    cluster: str = "slurm"
    """slurm; for tests without a cluster, submitit's local (background processes on this machine) or debug (in this
    process)."""

    def __post_init__(self) -> None:
        check_choices(self, cluster=CLUSTERS)


@dataclass(frozen=True)
class FanoutConfig:
    """Split of a stage's work into jobs, and where they run. Affects speed, not results."""

    executor: str = "inline"
    """inline (one after another in this process), local (processes on this machine), slurm or ray."""
    members_per_job: int = 0
    """Policies per job, trained as one program; 0 = auto, by memory estimate, spread over parallel jobs."""
    memory_gb: float = 0.0
    """Memory per job in GB (GPU memory if it uses one) for that estimate; 0 = this machine's."""
    jobs_per_gpu: int = 1
    """Jobs that share a GPU (local, ray)."""
    parallel_jobs: int = 0
    """Maximum parallel jobs; 0 = auto, by GPUs or cores."""
    cpus_per_job: int = 0
    """CPU cores and torch threads per job; 0 = auto, set by the stage."""
    time_limit_min: float = 0.0
    """Time limit per job in minutes, after which it fails; 0 = none. Required by SLURM; not supported by inline."""
    retries: int = 0
    """Restarts of a job that failed, died or reached its time limit."""
    detach: bool = False
    """slurm: exit once all jobs are submitted; rerun the command to collect them."""
    ray_address: str = ""
    """Address of a running Ray cluster: host:port, ray://host:port or auto. Empty: start one on this machine."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    """Resources of SLURM jobs."""

    def __post_init__(self) -> None:
        check_choices(self, executor=EXECUTORS)
        check_not_negative(
            self, "members_per_job", "memory_gb", "parallel_jobs", "cpus_per_job", "time_limit_min", "retries"
        )
        check_counts(self, "jobs_per_gpu")
        if self.executor == "slurm" and not self.time_limit_min:
            raise ConfigError("time_limit_min is 0, but SLURM needs a time limit per job (minutes)")
        if self.executor == "inline" and self.time_limit_min:
            raise ConfigError("time_limit_min is not supported by executor=inline; use executor=local")
        if self.detach and self.executor != "slurm":
            raise ConfigError(
                f"detach: jobs of executor={self.executor} end with the command; only slurm supports detach"
            )
        if self.ray_address and self.executor != "ray":
            raise ConfigError(f"ray_address is set, but executor is {self.executor}")

    def check_gpus(self, accelerator: str, key: str) -> None:
        """Raise a ConfigError if jobs of SLURM need a GPU and none is asked for.

        Args:
            key: of the accelerator, in full: `extract.accelerator`.
        """
        if self.executor == "slurm" and wants_gpu(accelerator) and not self.slurm.gpus:
            raise ConfigError(f"{key} is {accelerator}, but {_group(key)}slurm.gpus is 0")

    def check_machine(self, accelerator: str = "cpu", key: str = "accelerator") -> None:
        """Raise a StageError if the executor is not installed or unreachable, or if local jobs need a GPU that this
        machine lacks."""
        setting = f"{_group(key)}executor"
        if self.executor == "ray":
            if find_spec("ray") is None:
                raise StageError(
                    f"{setting}=ray needs Ray, which is not installed: pip install 'orrery[ray]', or use another "
                    "executor"
                )
            if ":" in self.ray_address:
                check_reachable(self.ray_address)
        if self.executor == "slurm":
            if find_spec("submitit") is None:
                raise StageError(f"{setting}=slurm needs submitit, which is not installed: pip install submitit")
            if self.slurm.cluster == "slurm" and shutil.which("srun") is None:
                raise StageError(
                    f"{setting}=slurm: srun is not available on this machine. Run the command on a login node of the "
                    f"cluster, or use {setting}=local"
                )
        elsewhere = self.ray_address or (self.executor == "slurm" and self.slurm.cluster == "slurm")
        if not elsewhere:
            check_gpu(accelerator, key)


def _group(key: str) -> str:
    """Where the fan-out of the stage is set that has this key: `extract.fanout.`"""
    stage, dot, _ = key.partition(".")
    return f"{stage}.fanout." if dot else ""


def check_reachable(address: str) -> None:
    """Raise a StageError within seconds if nothing listens at host:port; Ray itself would try for two minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise StageError(
            f"fanout.ray_address={address}: no connection ({error}). Start the cluster (`ray start --head`), correct "
            "the address, or leave it empty to start one on this machine"
        ) from error
