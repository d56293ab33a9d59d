"""Real engines: hosts, a SLURM cluster, a Ray cluster. Each process of the tests has its own; all end with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .hosts import Host, hosts, lacks_hosts
from .ray import Ray, lacks_ray, ray
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


@pytest.fixture(scope="session")
def ray_cluster(three_hosts: list[Host], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ray]:
    """A Ray cluster of a head and a node; the third host is none of it."""
    if lack := lacks_ray():
        pytest.skip(f"no Ray: {lack}")
    with ray(three_hosts[:2], tmp_path_factory.mktemp("ray")) as made:
        three_hosts[2].environment |= made.hosts[0].environment
        yield made
