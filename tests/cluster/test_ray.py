"""`orrery run` on a real Ray cluster of several hosts."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest
from orrery.pipeline.jobs.job import read_status

from ..end_to_end.toy_project import UNIT, Project
from .hosts import Host, wait_for
from .ray import COMMAND, Ray

pytestmark = pytest.mark.ray


@pytest.fixture
def project(ray_cluster: Ray, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """On the head."""
    return on(ray_cluster.hosts[0], tmp_path_factory.mktemp("project"))


def on(host: Host, folder: Path) -> Project:
    project = Project(folder, host.command)
    project.environment |= host.environment
    return project


def options(project: Project, address: str, **others: str) -> list[str]:
    """The nodes have neither the project's modules nor its variables."""
    variables = f"{{PYTHONPATH: {UNIT}, FAULTS: {project.faults}}}"
    return [
        "count.fanout.executor=ray",
        f"count.fanout.options.address={address}",
        f"count.fanout.options.runtime_env={{env_vars: {variables}}}",
        *(f"count.fanout.options.{name}={value}" for name, value in others.items()),
    ]


def test_jobs_run_on_all_hosts_and_one_that_dies_costs_only_its_own(project: Project, ray_cluster: Ray) -> None:
    head, node = ray_cluster.hosts
    command = ["count.until=400", "count.jobs=4", *options(project, ray_cluster.address)]
    with project.start("run", "toy", f"run_dir={project.run_dir}", *command) as run:
        project.wait_for(*(f"job{i}" for i in range(4)))
        places = {f"job{i}": read_status(project.jobs / f"job{i}").place.split()[-1] for i in range(4)}
        memory = head.run(*COMMAND, "memory", "--address", ray_cluster.address, "--stats-only").stdout
        node.die()
        began = time.monotonic()
        code = run.wait(timeout=180)
    try:
        err = project.err.read_text()
        print(f"noticed after {time.monotonic() - began:.0f} s")
        assert code == 2
        lost = [name for name, place in places.items() if place == node.name]
        assert lost
        for name in lost:
            assert f"{name}: Ray: lost process " in err
        assert "Plasma memory usage 0 MiB, 0 objects" in memory
        code, out, err = project.run(*command)
        assert code == 0, err
        assert "counted 1600" in out
    finally:
        node.reconnect()
        ray_cluster.start_node(node)
        wait_for(lambda: ray_cluster.answers(2), "the node to join again", 120)


def test_a_command_outside_of_the_cluster_whose_hosts_lack_its_modules(ray_cluster: Ray, tmp_path: Path) -> None:
    project = on(ray_cluster.outside, tmp_path)
    address = f"ray://{ray_cluster.hosts[0].address}:10001"
    bare = ["count.fanout.executor=ray", f"count.fanout.options.address={address}", "count.jobs=1"]
    code, _, err = project.run("count.until=5", *bare)
    assert code == 2
    assert "fanout_jobs:count of" in err
    assert "cannot be imported on host" in err

    (project.faults / "job1").write_text("lose the watcher")
    code, _, err = project.run("count.until=5", *options(project, address, mem_gb="0.1"))
    assert code == 2
    assert "1 of 3 jobs of stage 'count' failed" in err
    assert "job1: Ray: " in err
    (project.faults / "job1").unlink()
    code, out, err = project.run("count.until=5", *options(project, address, mem_gb="0.1"))
    assert code == 0, err
    assert "counted 15, from 0 0 0" in out


def test_a_signal_saves_and_the_same_command_continues(project: Project, ray_cluster: Ray) -> None:
    command = ["count.until=400", "count.jobs=2", *options(project, ray_cluster.address)]
    with project.start("run", "toy", f"run_dir={project.run_dir}", *command) as run:
        project.wait_for("job0")  # on a busy machine, the other job may start when this one is done
        run.send_signal(signal.SIGUSR1)
        assert run.wait(timeout=120) == 75
    assert "stopped by SIGUSR1 in stage count; rerun the command to continue" in project.err.read_text()
    job0 = project.status()["job0"]
    assert job0.startswith("stopped 1")
    assert f"{project.jobs}/job0/log.txt" in job0
    code, out, err = project.run(*command)
    assert code == 0, err
    assert re.search("counted 800, from [1-9]", out)


def test_bad_clusters_are_named_within_seconds(project: Project, ray_cluster: Ray) -> None:
    def fails(*overrides: str, **variables: str) -> str:
        environment = dict(project.environment)
        project.environment |= variables
        began = time.monotonic()
        code, _, err = project.run(*overrides)
        project.environment = environment
        print(time.monotonic() - began, err)
        assert code == 2
        assert not project.jobs.exists()
        return " ".join(err.split())

    fake = project.run_dir.parent / "fake"
    fake.mkdir()
    (fake / "sitecustomize.py").write_text("import ray\nray.__version__ = '2.1.0'\n")
    good = ray_cluster.address
    assert "no connection" in fails(*options(project, f"{ray_cluster.hosts[0].address}:1"))
    assert "but local Ray version is 2.1.0" in fails(*options(project, good), PYTHONPATH=f"{UNIT}:{fake}")
    assert "cannot be used as a Ray cluster" in fails(*options(project, good), RAY_AUTH_TOKEN="0" * 32)
    assert "no node of the cluster has what a job needs: CPU 1, a100 1" in fails(
        *options(project, good, resources="{a100: 1}")
    )

    hidden = project.run_dir.parent / "hidden"
    hidden.mkdir()
    head = ray_cluster.hosts[0]
    project.run_dir = hidden / "run"
    project.on = lambda *command: head.command("sh", "-c", f'mount -t tmpfs none {hidden} && exec "$@"', "sh", *command)
    err = fails(*options(project, good))
    assert f"{hidden}/run/count.jobs is not visible on nodes" in err
    assert ray_cluster.hosts[1].address in err
