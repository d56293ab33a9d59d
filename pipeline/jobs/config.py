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
    """What is asked of SLURM for each job."""

    partition: str = ""
    """Partition; empty is the cluster's default."""
    gpus: int = 0
    """GPUs of a job."""
    mem_gb: float = 0.0
    """Memory of a job; 0 is the cluster's default."""
    options: dict[str, str] = field(default_factory=dict)
    """Other options of sbatch by their long names: {account: lab, constraint: a100}."""
    cluster: str = "slurm"
    """slurm; or, to try things out without one, submitit's local (processes of this machine that outlive the command)
    or debug (in this process)."""

    def __post_init__(self) -> None:
        check_choices(self, cluster=CLUSTERS)


@dataclass(frozen=True)
class FanoutConfig:
    """How a stage's work is split into jobs, and where they run. Decides speed, not results."""

    executor: str = "inline"
    """inline (one after another in this process), local (processes of this machine), slurm, or ray."""
    members_per_job: int = 0
    """Policies that a job trains as one program; 0 as many as fit into memory by an estimate, spread over the jobs that
    run at once."""
    memory_gb: float = 0.0
    """Memory that a job may take (of the GPU, where it uses one), for that estimate; 0 takes this machine's."""
    jobs_per_gpu: int = 1
    """Jobs that share a GPU (local, ray)."""
    parallel_jobs: int = 0
    """Jobs at once at most; 0 as many as there are GPUs or cores for."""
    cpus_per_job: int = 0
    """CPU cores, and torch threads, of a job; 0 as many as the stage makes good use of."""
    time_limit_min: float = 0.0
    """Minutes after which a job is stopped and counts as failed; 0 is no limit. SLURM needs one; inline cannot
    have one."""
    retries: int = 0
    """Times that a job which failed, died or reached its limit is started again before the command gives it up."""
    detach: bool = False
    """End the command as soon as all jobs are submitted (slurm); the same command gathers them later."""
    ray_address: str = ""
    """host:port, ray://host:port or auto, of a running Ray cluster; empty starts one on this machine."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    """What is asked of SLURM."""

    def __post_init__(self) -> None:
        check_choices(self, executor=EXECUTORS)
        check_not_negative(
            self, "members_per_job", "memory_gb", "parallel_jobs", "cpus_per_job", "time_limit_min", "retries"
        )
        check_counts(self, "jobs_per_gpu")
        if self.executor == "slurm" and not self.time_limit_min:
            raise ConfigError("time_limit_min: SLURM needs the longest time that a job may take, in minutes")
        if self.executor == "inline" and self.time_limit_min:
            raise ConfigError("time_limit_min: a job in this process cannot be stopped; choose executor=local")
        if self.detach and self.executor != "slurm":
            raise ConfigError(f"detach: jobs of executor={self.executor} end with the command; only slurm's go on")
        if self.ray_address and self.executor != "ray":
            raise ConfigError(f"ray_address is given, but executor is {self.executor}")

    def check_gpus(self, accelerator: str, key: str) -> None:
        """Raise a ConfigError if jobs of SLURM need a GPU and none is asked for.

        Args:
            key: of the accelerator, in full: `extract.accelerator`.
        """
        if self.executor == "slurm" and wants_gpu(accelerator) and not self.slurm.gpus:
            raise ConfigError(f"{key} is {accelerator}, but {_group(key)}slurm.gpus is 0")

    def check_machine(self, accelerator: str = "cpu", key: str = "accelerator") -> None:
        """Raise a StageError if the executor is not installed here or does not answer, or if jobs that run on this
        machine need a GPU that it lacks."""
        setting = f"{_group(key)}executor"
        if self.executor == "ray":
            if find_spec("ray") is None:
                raise StageError(
                    f"{setting}=ray needs Ray, which is not installed: pip install 'orrery[ray]', or choose another "
                    "executor"
                )
            if ":" in self.ray_address:
                check_reachable(self.ray_address)
        if self.executor == "slurm":
            if find_spec("submitit") is None:
                raise StageError(f"{setting}=slurm needs submitit, which is not installed: pip install submitit")
            if self.slurm.cluster == "slurm" and shutil.which("srun") is None:
                raise StageError(
                    f"{setting}=slurm: there is no srun on this machine. Run the command on a login node of the "
                    f"cluster, or choose {setting}=local"
                )
        elsewhere = self.ray_address or (self.executor == "slurm" and self.slurm.cluster == "slurm")
        if not elsewhere:
            check_gpu(accelerator, key)


def _group(key: str) -> str:
    """Where the fan-out of the stage is set that has this key: `extract.fanout.`"""
    stage, dot, _ = key.partition(".")
    return f"{stage}.fanout." if dot else ""


def check_reachable(address: str) -> None:
    """Raise a StageError within seconds where nothing listens at host:port; Ray itself would try for two minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise StageError(
            f"fanout.ray_address={address}: nothing answers there ({error}). Start the cluster (`ray start --head`), "
            "correct the address, or leave it empty to start one on this machine"
        ) from error
