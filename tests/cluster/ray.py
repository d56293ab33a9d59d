"""A Ray cluster on hosts of this machine: the head on the first, two CPUs on each."""

from __future__ import annotations

import contextlib
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .hosts import Host, wait_for

COMMAND = (sys.executable, "-m", "ray.scripts.scripts")
START_SECONDS = 120.0


def lacks_ray() -> str:
    """Why there can be no cluster; empty if there can."""
    return "" if find_spec("ray") else "pip install 'orrery[ray]'"


@dataclass(frozen=True)
class Ray:
    """A running cluster."""

    hosts: Sequence[Host]
    outside: Host
    """Not of the cluster, but may connect to it."""
    folder: Path
    files: str
    """Where Ray keeps its sockets, whose paths may have 107 characters."""

    @property
    def login(self) -> Host:
        """The head; here commands are started."""
        return self.hosts[0]

    @property
    def address(self) -> str:
        return f"{self.hosts[0].address}:6379"

    def start_node(self, host: Host, **variables: str) -> subprocess.Popen[bytes]:
        is_head = host is self.hosts[0]
        role = ["--head", "--port=6379", "--include-dashboard=false"] if is_head else [f"--address={self.address}"]
        # Started as scripts start it, `ray start ... &`: the shell then lets Ray and its workers ignore SIGINT.
        return host.start(
            "sh", "-c", "trap '' INT; exec \"$@\"", "sh",
            *COMMAND, "start", "--block", *role, f"--node-ip-address={host.address}", "--num-cpus=2",
            "--object-store-memory=80000000", *([f"--temp-dir={self.files}"] if is_head else []),
            log=self.folder / f"{host.name}.log", **variables,
        )  # fmt: skip

    def answers(self, nodes: int) -> bool:
        """Whether so many nodes are there."""
        shown = self.hosts[0].run(*COMMAND, "status", "--address", self.address).stdout
        return len(re.findall(r"^ \d+ node_", shown.partition("Pending:")[0], re.MULTILINE)) == nodes


@contextlib.contextmanager
def ray(head: Host, node: Host, outside: Host, folder: Path) -> Iterator[Ray]:
    """A cluster whose logs are in `folder`; it ends with its hosts."""
    token = secrets.token_hex(16)
    for host in (head, node, outside):
        host.environment |= {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0",
            # A host that is gone is noticed in seconds.
            "RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "2000", "RAY_health_check_failure_threshold": "5",
            "RAY_raylet_start_wait_time_s": f"{START_SECONDS:g}",
        }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as files:
        cluster = Ray((head, node), outside, folder, files)
        for host in cluster.hosts:
            cluster.start_node(host)
        wait_for(lambda: cluster.answers(len(cluster.hosts)), f"all nodes to join: see {folder}", START_SECONDS)
        yield cluster
