"""Real engines: hosts, a SLURM cluster. Each process of the tests has its own; all end with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .hosts import Host, hosts, lacks_hosts
from .slurm import Slurm, lacks_slurm, slurm


@pytest.fixture(scope="session")
def three_hosts() -> Iterator[list[Host]]:
    if lack := lacks_hosts():
        pytest.skip(f"no hosts: {lack}")
    with hosts("host0", "host1", "host2") as made:
        yield made


@pytest.fixture(scope="session")
def cluster(three_hosts: list[Host], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A SLURM cluster of two nodes."""
    if lack := lacks_slurm():
        pytest.skip(f"no SLURM: {lack}")
    with slurm(three_hosts, tmp_path_factory.mktemp("slurm")) as made:
        yield made
