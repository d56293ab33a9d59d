"""A SLURM cluster on hosts of this machine: the controller on the first, a node on each of the others.

No accounting database, no cgroups, no systemd. Nothing of it outside `folder` and the hosts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .hosts import Host, wait_for

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")

ARRAY_JOBS = 5
"""Of a job array at most: SLURM's default is 1001, too many to run here."""

CPUS_PER_NODE = 4
"""More than there are: jobs of tests mostly wait."""
MEMORY_MB = 4000


def lacks_slurm() -> str:
    """Why this machine cannot have a cluster; empty if it can."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"{', '.join(missing)} missing: apt-get install slurm-wlm munge" if missing else ""


@dataclass(frozen=True)
class Slurm:
    """A running cluster."""

    login: Host
    """Runs the controller; here commands are started."""
    nodes: Sequence[Host]
    folder: Path

    def start_node(self, host: Host) -> None:
        host.start("slurmd", "-D", "-N", host.name, log=self.folder / f"{host.name}.log")

    def state(self, host: Host) -> str:
        return self.login.run(
            "sinfo", "--noheader", "--partition=main", "--nodes", host.name, "--format=%T"
        ).stdout.strip()

    def wait_until_idle(self, seconds: float = 120) -> None:
        """Until all nodes are there and nothing runs."""
        there = {"idle", "planned", "mixed"}  # the last two may be what the scheduler last saw
        deadline = time.monotonic() + seconds
        while self.queue() or not {self.state(host) for host in self.nodes} <= there:
            assert time.monotonic() < deadline, f"the cluster is not idle after {seconds:g} s: see {self.folder}"
            time.sleep(0.2)

    def queue(self) -> dict[str, str]:
        """State of each job that is queued or running by its id, elements of arrays apart."""
        shown = self.login.run("squeue", "--noheader", "--array", "--format=%i %T").stdout
        return dict(line.split() for line in shown.splitlines())

    def control(self, *arguments: str) -> None:
        done = self.login.run("scontrol", *arguments)
        assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def slurm(hosts: Sequence[Host], folder: Path) -> Iterator[Slurm]:
    """A cluster in `folder`, which only root may write to; it ends with its hosts."""
    login, *nodes = hosts
    for name in ("state", *(f"spool.{host.name}" for host in nodes)):
        (folder / name).mkdir()
    socket, key = folder / "munge.socket", folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    for part in (folder, *folder.parents):  # munge trusts no folder that others could replace
        if part.stat().st_mode & 0o022 and not part.stat().st_mode & 0o1000:
            part.chmod(part.stat().st_mode & ~0o022)
    names = ",".join(host.name for host in nodes)
    addresses = ",".join(host.address for host in nodes)
    conf = folder / "slurm.conf"
    conf.write_text(
        f"""ClusterName=orrery
SlurmctldHost={login.name}({login.address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={socket},cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory,CR_LLN
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
DefMemPerCPU=500
SlurmdTimeout=20
KillWait=5
MessageTimeout=10
MaxArraySize={ARRAY_JOBS}
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={names} NodeAddr={addresses} CPUs={CPUS_PER_NODE} RealMemory={MEMORY_MB} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=60 State=UP PriorityTier=2
"""
    )
    for host in hosts:
        host.environment["SLURM_CONF"] = str(conf)
    login.start(
        "munged", "--foreground", "--force", "--socket", socket, "--key-file", key,
        "--pid-file", folder / "munged.pid", "--seed-file", folder / "munged.seed", "--log-file", folder / "munged.log",
        log=folder / "munged.out",
    )  # fmt: skip
    wait_for(socket.exists, f"munged to start: see {folder}/munged.out")
    login.start("slurmctld", "-D", log=folder / "slurmctld.out")
    cluster = Slurm(login, nodes, folder)
    for host in nodes:
        cluster.start_node(host)
    cluster.wait_until_idle()
    yield cluster
