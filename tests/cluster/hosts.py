"""Hosts on one machine: each a network namespace with a name and an address of its own, joined by a switch.

The file system and the processes are those of the machine, as if every host mounted the same disk. What runs on a host
ends with it, and nothing outside the namespaces is changed.

    with hosts("host0", "host1") as (host0, host1):
        host0.run("ping", "-c1", "host1")
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE = 30.0
"""Seconds for what should happen at once."""

_number = itertools.count()


def lacks_hosts() -> str:
    """Why this machine cannot have such hosts; empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "`ip` is missing: apt-get install iproute2"
    namespace = f"orrery-{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", namespace], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)
    return made.stderr.strip()


@dataclass
class Host:
    """A host; what is started on it finds the others by name."""

    name: str
    address: str
    namespace: str
    names: Path
    """Its /etc/hosts."""
    environment: dict[str, str] = field(default_factory=dict)
    """Of all that is started on it, beside the variables of this process."""
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def command(self, *command: str | Path) -> list[str]:
        """`command`, as it is started on this host."""
        # Not `ip netns exec`, which hides /sys/fs/cgroup.
        inside = f'mount --bind {self.names} /etc/hosts && hostname {self.name} && exec "$@"'
        enter = ["nsenter", f"--net=/run/netns/{self.namespace}", "unshare", "--uts", "--mount"]
        return [*enter, "sh", "-c", inside, "sh", *map(str, command)]

    def _arguments(self, variables: Mapping[str, str | None]) -> dict[str, str]:
        merged = {**os.environ, **self.environment, **variables}
        return {name: value for name, value in merged.items() if value is not None}

    def start(self, *command: str | Path, log: Path | None = None, **variables: str | None) -> subprocess.Popen[bytes]:
        """Start a process whose output goes to `log`; a variable that is None is removed."""
        with (log or Path(os.devnull)).open("ab") as out:
            process = subprocess.Popen(
                self.command(*command), env=self._arguments(variables), stdout=out, stderr=out, start_new_session=True
            )
        self._started.append(process)
        return process

    def run(self, *command: str | Path, timeout: float = 120, **variables: str | None) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(*command), env=self._arguments(variables), capture_output=True, text=True, timeout=timeout,
            check=False,
        )  # fmt: skip

    def processes(self) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]  # not those that have ended and wait to be noticed

    def die(self) -> None:
        """As when its power fails: others see no connection closed, only silence."""
        self.cut()
        self.kill()

    def cut(self) -> None:
        """Take it off the network."""
        ip("-n", self.namespace, "link", "set", "eth0", "down")

    def reconnect(self) -> None:
        ip("-n", self.namespace, "link", "set", "eth0", "up")

    def kill(self) -> None:
        """End all that runs on it."""
        wait_for(lambda: not self._kill_once(), f"processes on {self.name} to end")
        for process in self._started:
            process.wait()
        self._started.clear()

    def _kill_once(self) -> list[int]:
        pids = self.processes()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return pids


@contextlib.contextmanager
def hosts(*names: str) -> Iterator[list[Host]]:
    """Hosts of these names, all on one switch; they and all that runs on them are gone afterwards."""
    _remove_left()
    prefix = f"orrery-{os.getpid()}-{next(_number)}"
    switch = f"{prefix}-switch"
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    file = folder / "hosts"
    made = [Host(name, f"10.77.0.{number}", f"{prefix}-{name}", file) for number, name in enumerate(names, 1)]
    file.write_text("127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in made))
    try:
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "switch", "type", "bridge")
        ip("-n", switch, "link", "set", "switch", "up")
        for number, host in enumerate(made):
            ip("netns", "add", host.namespace)
            ip("-n", switch, "link", "add", f"port{number}", "type", "veth", "peer", "eth0", "netns", host.namespace)
            ip("-n", switch, "link", "set", f"port{number}", "master", "switch", "up")
            ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", host.namespace, "link", "set", device, "up")
        yield made
    finally:
        for host in made:
            host.kill()
            subprocess.run(["ip", "netns", "delete", host.namespace], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "delete", switch], capture_output=True, check=False)
        shutil.rmtree(folder)


def _remove_left() -> None:
    """What processes that were killed have left."""
    for namespace in Path("/run/netns").glob("orrery-*"):
        if not Path("/proc", namespace.name.split("-")[1]).exists():
            Host("", "", namespace.name, Path()).kill()
            subprocess.run(["ip", "netns", "delete", namespace.name], check=False)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def wait_for(condition: Any, what: str, seconds: float = PATIENCE) -> Any:
    """The first true value of `condition()`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.05)
    return value


def ended(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> list[int]:
    """Exit status of each, which have to end within `seconds`."""
    deadline = time.monotonic() + seconds
    try:
        return [process.wait(timeout=max(deadline - time.monotonic(), 0.1)) for process in processes]
    finally:
        for process in processes:
            process.kill()
