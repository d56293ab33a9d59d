"""`orrery run` on a real SLURM cluster without an accounting database: what jobs, nodes and the queue may do."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from orrery.pipeline.jobs.job import read_status
from orrery.pipeline.reading import read_json

from ..end_to_end.toy_project import Project
from .hosts import wait_for
from .slurm import Slurm

pytestmark = pytest.mark.slurm

SLURM = ["count.fanout.executor=slurm", "count.fanout.time_limit_min=1"]
DETACH = "count.fanout.detach=true"


@pytest.fixture
def project(cluster: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """On the login node; the cluster is as it was before when a test ends."""
    project = Project(tmp_path_factory.mktemp("project"), cluster.login.command)
    project.environment |= cluster.login.environment
    yield project
    cluster.login.run("scancel", "--user=root")
    cluster.wait_until_idle()


def job_id(project: Project, name: str) -> str:
    return read_json(project.jobs / name / "submission.json", RuntimeError)["id"]


def attempts(project: Project) -> list[list[str]]:
    states = project.status()
    return [states[name].split()[:2] for name in sorted(states)]


def test_an_array_whose_failed_job_runs_again(project: Project) -> None:
    options = ["count.fanout.options.partition=urgent", "count.fanout.options.sbatch={comment: try}"]
    (project.faults / "job1").write_text("raise")
    code, out, err = project.run("count.until=5", *SLURM, *options)
    assert code == 2
    assert "job1: ValueError: cannot count" in err
    assert "sacct" not in out + err, "submitit asks an accounting database, which there need not be"
    script = next((project.jobs / ".submitit").glob("*_submission.sh")).read_text()
    for line in ("partition=urgent", "comment=try", "time=6", "cpus-per-task=1", "array=0-2%3"):
        assert f"#SBATCH --{line}\n" in script

    (project.faults / "job1").unlink()
    code, out, err = project.run("count.until=5", *SLURM, *options)
    assert code == 0, err
    assert "counted 15, from 0 0 0" in out
    assert attempts(project) == [["done", "1"], ["done", "2"], ["done", "1"]]
    assert {read_status(project.jobs / f"job{i}").place.split()[-1] for i in range(3)} <= {"host1", "host2"}


def test_detached_jobs_go_on_and_are_gathered(project: Project) -> None:
    (project.faults / "job2").write_text("raise")
    code, _, err = project.run("count.until=240", *SLURM, DETACH)
    assert code == 75
    assert "count: 0 of 3 jobs done, 3 queued or running on executor slurm; rerun the command to collect them" in err
    project.wait_for("job0", "job1")
    wait_for(lambda: read_status(project.jobs / "job2").state == "failed", "job2 to fail")
    states = project.status()
    assert states["job0"].startswith("running 1")
    assert "counting" in states["job0"]
    assert f"{project.jobs}/job0/log.txt" in states["job0"]

    # What has failed meanwhile is submitted again, what runs is let be.
    (project.faults / "job2").unlink()
    assert project.run("count.until=240", *SLURM, DETACH)[0] == 75
    code, out, err = project.run("count.until=240", *SLURM)
    assert code == 0, err
    assert "counted 720, from 0 0 0" in out
    assert attempts(project) == [["done", "1"], ["done", "1"], ["done", "2"]]


def test_detached_jobs_of_other_settings_are_ended(project: Project, cluster: Slurm) -> None:
    assert project.run("count.until=6000", *SLURM, DETACH)[0] == 75
    project.wait_for("job0", "job1", "job2")
    code, _, err = project.run("count.until=6000", "count.fanout.executor=local")
    assert code == 2
    assert "3 jobs of count are queued or running on executor slurm" in err
    code, out, err = project.run("count.until=5", "count.fanout.executor=local")
    assert code == 0, err
    assert "counted 15, from 0 0 0" in out
    assert not cluster.queue()


def test_jobs_that_are_lost_cancelled_or_told_of_their_preemption(project: Project, cluster: Slurm) -> None:
    assert project.run("count.until=300", *SLURM, DETACH)[0] == 75
    project.wait_for("job0", "job1", "job2")
    # job0: killed, watcher and all. job1: cancelled. job2: told by SIGUSR2, then requeued by submitit.
    steps = {pid for host in cluster.nodes for pid in host.processes() if environment_of(pid, "SLURM_PROCID")}
    for pid in [pid for pid in steps if job_of(pid) == job_id(project, "job0")]:
        os.kill(pid, signal.SIGKILL)
    cluster.login.run("scancel", job_id(project, "job1"))
    cluster.login.run("scancel", "--signal=USR2", job_id(project, "job2"))
    code, _, err = project.run("count.until=300", *SLURM)
    assert code == 0, err
    assert attempts(project) == [["done", "2"]] * 3


def test_jobs_that_are_lost_together_are_noticed_together(project: Project) -> None:
    command = ["count.until=2000", "count.jobs=8", *SLURM]
    with project.start("run", "toy", f"run_dir={project.run_dir}", *command) as run:
        project.wait_for(*(f"job{number}" for number in range(8)))
        for number in range(8):
            psutil.Process(int(read_status(project.jobs / f"job{number}").place.split()[1])).parent().kill()
        killed = time.monotonic()
        assert run.wait(timeout=120) == 2
    assert time.monotonic() - killed < 8 * 4.0, "not one after the other, each with its own grace period"
    assert "8 of 8 jobs of stage 'count' failed" in project.err.read_text()
    scripts = [path.read_text() for path in (project.jobs / ".submitit").glob("*_submission.sh")]
    assert sorted(re.findall(r"array=(\S+)", " ".join(scripts))) == ["0-2%3", "0-4%5"], "arrays as large as they may be"


def environment_of(pid: int, name: str) -> str:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return next((one.partition("=")[2] for one in variables if one.startswith(f"{name}=")), "")


def job_of(pid: int) -> str:
    return f"{environment_of(pid, 'SLURM_ARRAY_JOB_ID')}_{environment_of(pid, 'SLURM_ARRAY_TASK_ID')}"


@pytest.mark.parametrize("requeue", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_node_that_goes_down(project: Project, cluster: Slurm, requeue: bool) -> None:
    host = cluster.nodes[1]
    kept = [] if requeue else ["count.fanout.options.sbatch={no-requeue: true}"]
    command = ["count.until=120", "count.jobs=4", *SLURM, *kept]
    with project.start("run", "toy", f"run_dir={project.run_dir}", *command) as run:
        project.wait_for(*(f"job{i}" for i in range(4)))
        lost = [name for name in project.status() if read_status(project.jobs / name).place.endswith(host.name)]
        host.die()
        code = run.wait(timeout=180)
    try:
        err = project.err.read_text()
        assert lost
        assert code == (0 if requeue else 2), err
        for name in [] if requeue else lost:
            assert f"{name}: SLURM: NODE_FAIL on {host.name}; see {project.jobs}/.submitit/" in err
        assert project.run(*command)[0] == 0
    finally:
        host.reconnect()
        cluster.start_node(host)


def test_jobs_that_hang_or_take_too_much_memory(project: Project) -> None:
    (project.faults / "job0").write_text("hoard")
    (project.faults / "job1").write_text("hang")
    limits = ["count.fanout.time_limit_min=0.1", "count.fanout.options.mem_gb=0.5"]
    code, _, err = project.run("count.until=40", *SLURM[:1], *limits)
    assert code == 2
    assert "2 of 3 jobs of stage 'count' failed" in err
    (log,) = re.findall(r"job0: SLURM: FAILED on host\d; see (\S+)", err)  # OUT_OF_MEMORY where there are cgroups
    assert "exceeded memory limit" in Path(log).read_text()
    assert "job1: reached the time limit of 0.1 min" in err


@pytest.mark.slow
def test_a_signal_before_the_limit_of_the_queue_saves(project: Project) -> None:
    """SLURM's limits are whole minutes, and it may signal early."""
    command = ["count.until=700", "count.jobs=1", *SLURM, "count.fanout.options.sbatch={time: 1, signal: USR1@40}"]
    for attempt in range(5):
        code, out, err = project.run(*command)
        if attempt and code == 0:
            break
        assert code == 2
        assert "job0: stopped by SIGUSR1" in err
    assert "counted 700" in out
    assert "from 0" not in out


def test_preempted_jobs_are_requeued(project: Project, cluster: Slurm) -> None:
    assert project.run("count.until=100", "count.jobs=1", *SLURM, DETACH)[0] == 75
    project.wait_for("job0")
    urgent = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"]
    assert cluster.login.run("sbatch", *urgent).returncode == 0
    code, out, err = project.run("count.until=100", "count.jobs=1", *SLURM)
    assert code == 0, err
    assert (project.jobs / "job0" / "log.txt").read_text().count("--- attempt 1") == 2
    assert "from 0" not in out, "SIGTERM saved it"


@pytest.mark.slow
def test_of_60_jobs_of_which_a_fifth_is_killed_none_is_lost(project: Project) -> None:
    """Every other one together with its watcher, so that nobody says how it ended."""
    victims = random.Random(0).sample(range(60), 12)
    command = ["count.until=40", "count.jobs=60", "count.fanout.retries=1", *SLURM]
    left = {f"job{number}": number % 2 for number in victims}
    with project.start("run", "toy", f"run_dir={project.run_dir}", *command) as run:
        deadline = time.monotonic() + 1500
        while run.poll() is None and time.monotonic() < deadline:
            for name in [name for name in left if (project.jobs / name / "progress.json").exists()]:
                process = psutil.Process(int(read_status(project.jobs / name).place.split()[1]))
                (process.parent() if left.pop(name) else process).kill()
            time.sleep(0.1)
    assert run.returncode == 0, project.err.read_text()
    assert not left
    assert "counted 2400" in project.out.read_text()
    assert sum(row == ["done", "2"] for row in attempts(project)) == 12


@pytest.mark.parametrize(
    ("variables", "options", "message"),
    [
        ({}, "partition=gpu", "invalid partition specified: gpu"),
        ({}, "mem_gb=900", "Requested node configuration is not available"),
        ({}, "sbatch={acount: lab}", "unrecognized option '--acount=lab'"),
        ({"SLURM_CONF": "/nowhere/slurm.conf"}, "gpus=0", "cannot stat file /nowhere/slurm.conf"),
    ],
)
def test_what_the_queue_refuses_is_said_before_any_stage_runs(
    project: Project, variables: dict[str, str], options: str, message: str
) -> None:
    project.environment |= variables
    started = time.monotonic()
    code, _, err = project.run(*SLURM, f"count.fanout.options.{options}")
    assert time.monotonic() - started < 30
    assert code == 2
    assert "SLURM would not accept these jobs (sbatch --test-only --" in err
    assert message in " ".join(err.split())
    assert not project.jobs.exists()


def test_a_run_folder_that_nodes_do_not_see_is_found_before_submission(project: Project, cluster: Slurm) -> None:
    hidden = project.run_dir.parent / "hidden"
    hidden.mkdir()
    project.run_dir = hidden / "run"
    hide = f'mount -t tmpfs none {hidden} && exec "$@"'
    project.on = lambda *command: cluster.login.command("sh", "-c", hide, "sh", *command)
    code, _, err = project.run(*SLURM)
    assert code == 2
    assert re.search(f"{hidden}/run/count.jobs is not visible on host[12]", " ".join(err.split()))
