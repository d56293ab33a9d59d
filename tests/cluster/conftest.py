"""Real engines: hosts, a SLURM cluster, a Ray cluster. Each process of the tests has its own; all end with it.

No two share a host: a test of one may take a host down without ending what another runs there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from .hosts import Host, hosts, lacks_hosts
from .ray import Ray, lacks_ray, ray
from .slurm import Slurm, lacks_slurm, slurm


@contextlib.contextmanager
def hosts_or_skip(*names: str) -> Iterator[list[Host]]:
    if lack := lacks_hosts():
        pytest.skip(f"no hosts: {lack}")
    with hosts(*names) as made:
        yield made


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[list[Host]]:
    with hosts_or_skip("host1", "host2") as made:
        yield made


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A SLURM cluster of two nodes."""
    if lack := lacks_slurm():
        pytest.skip(f"no SLURM: {lack}")
    with hosts_or_skip("host0", "host1", "host2") as made, slurm(made, tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ray]:
    """A Ray cluster of a head and a node."""
    if lack := lacks_ray():
        pytest.skip(f"no Ray: {lack}")
    with hosts_or_skip("host0", "host1", "host2") as made, ray(*made, tmp_path_factory.mktemp("ray")) as cluster:
        yield cluster
