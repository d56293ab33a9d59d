"""How a stage's work is split into jobs and where they run, and whether that can be had on this machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..accelerator import check_gpu, wants_gpu
from ..config.checks import check_counts, check_not_negative
from ..config.schema import read_options
from ..entry_points import names
from ..errors import ConfigError
from ..stage import Context
from .executor import Executor, JobResources, load_executor


@dataclass(frozen=True)
class FanoutConfig:
    """Split of a stage's work into jobs, and where they run. Affects speed, not results."""

    executor: str = "inline"
    """inline (one after another in this process), local (processes on this machine), slurm, ray, or an executor of an
    installed package."""
    policies_per_job: int = field(default=0, metadata={"renamed_from": "members_per_job"})
    """Policies per job, trained as one program; 0 = auto, by memory estimate, spread over parallel jobs."""
    memory_gb: float = 0.0
    """Memory per job in GB (GPU memory if it uses one), from which policies per job are estimated; 0 = this
    machine's."""
    jobs_per_gpu: int = 1
    """Jobs that share a GPU (local, ray)."""
    parallel_jobs: int = 0
    """Maximum parallel jobs; 0 = auto, by GPUs or cores."""
    cpus_per_job: int = 0
    """CPU cores and torch threads per job; 0 = auto, set by the stage."""
    time_limit_min: float = field(default=0.0, metadata={"belongs_to": "executor"})
    """Time limit per job in minutes, after which it fails; 0 = none. Required by SLURM; not supported by inline."""
    retries: int = 0
    """Restarts of a job that failed, died or reached its time limit."""
    detach: bool = field(default=False, metadata={"belongs_to": "executor"})
    """slurm: exit once all jobs are submitted; rerun the command to collect them."""
    options: dict[str, Any] = field(
        default_factory=dict, metadata={"renamed_from": "slurm ray_address", "belongs_to": "executor"}
    )
    """Options of the executor. slurm: partition, gpus and mem_gb per job, sbatch (other sbatch options by long name).
    ray: address of a running cluster (host:port, ray://host:port or auto; empty: start one on this machine); mem_gb,
    resources and runtime_env per job."""

    def __post_init__(self) -> None:
        if self.executor not in names("executors"):
            raise ConfigError(f"executor: expected one of {', '.join(names('executors'))}, found {self.executor!r}")
        check_not_negative(
            self, "policies_per_job", "memory_gb", "parallel_jobs", "cpus_per_job", "time_limit_min", "retries"
        )
        check_counts(self, "jobs_per_gpu")
        if self.kind.needs_time_limit and not self.time_limit_min:
            raise ConfigError(f"time_limit_min is 0, but executor={self.executor} needs a time limit per job (minutes)")
        if self.kind.in_this_process and self.time_limit_min:
            raise ConfigError(f"time_limit_min is not supported by executor={self.executor}; use executor=local")
        if self.detach and not self.kind.outlives_command:
            raise ConfigError(f"detach: jobs of executor={self.executor} end with the command; slurm supports detach")
        _ = self._options

    @property
    def kind(self) -> type[Executor]:
        return load_executor(self.executor)

    @cached_property
    def _options(self) -> Any:
        return read_options(self.kind.Options, self.options, f"executor={self.executor}")

    def per_job(self, members: int, elsewhere: int) -> int:
        """Members of a job that runs them side by side in processes of its own: all of them inline, where jobs run one
        after another; 0 for one job per task.

        Args:
            elsewhere: with other executors.
        """
        return self.policies_per_job or (members if self.kind.in_this_process else elsewhere)

    def start(self, resources: JobResources, context: Context) -> Executor:
        """The executor; see `Executor.__init__`."""
        return self.kind(self._options, resources, context)

    def resources(self, cpus: int, accelerator: str, workers: int) -> JobResources:
        """Args:
        cpus: CPU cores that a job makes good use of, unless `cpus_per_job` says otherwise.
        workers: processes that this machine may run.
        """
        return JobResources(
            cpus=self.cpus_per_job or cpus,
            workers=workers,
            accelerator=accelerator,
            jobs_per_gpu=self.jobs_per_gpu,
            parallel_jobs=self.parallel_jobs,
            limit_seconds=60 * self.time_limit_min,
        )

    @property
    def is_local(self) -> bool:
        """Whether jobs run on this machine, whose memory and GPUs are then theirs."""
        return self.kind.is_local(self._options)

    def jobs_here(self, resources: JobResources) -> int:
        """Jobs that share this machine's memory at a time."""
        return self.kind.jobs_here(self._options, resources)

    def check_gpus(self, accelerator: str, key: str) -> None:
        """Raise a ConfigError if jobs need a GPU and the executor is not asked for one.

        Args:
            key: of the accelerator, in full: `extract.accelerator`.
        """
        if wants_gpu(accelerator) and (reason := self.kind.lacks_gpus(self._options)):
            raise ConfigError(f"{key} is {accelerator}, but {_group(key)}options.{reason}")

    def check_machine(self, accelerator: str = "cpu", key: str = "accelerator") -> None:
        """Raise a StageError if the executor is not installed or unreachable, or if local jobs need a GPU that this
        machine lacks."""
        self.kind.check_machine(self._options, self.resources(1, accelerator, 1), _group(key))
        if self.is_local:
            check_gpu(accelerator, key)


def _group(key: str) -> str:
    """Where the fan-out of the stage is set that has this key: `extract.fanout.`"""
    stage, dot, _ = key.partition(".")
    return f"{stage}.fanout." if dot else ""
