"""`orrery run` and `orrery status` over a stage that fans out: detached, preempted, killed, and on a mock of SLURM."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from orrery.pipeline.jobs.job import read_status

from ..unit.fanout_jobs import write_configs

UNIT = Path(__file__).parents[1] / "unit"
MOCK_SLURM = Path(__file__).with_name("mock_slurm.py")
LOCAL = ["count.fanout.executor=local", "count.fanout.parallel_jobs=3"]
SUBMITIT = ["count.fanout.executor=slurm", "count.fanout.time_limit_min=1", "count.fanout.options.cluster=local"]
SLURM = SUBMITIT[:2]
DETACH = "count.fanout.detach=true"


class Project:
    def __init__(self, folder: Path) -> None:
        self.config_dir = write_configs(folder / "configs")
        self.run_dir = folder / "run"
        self.jobs = self.run_dir / "count.jobs"
        self.faults = folder / "faults"
        self.faults.mkdir()
        self.out, self.err = folder / "out.txt", folder / "err.txt"
        self.environment = {**os.environ, "PYTHONPATH": str(UNIT), "FAULTS": str(self.faults)}

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(UNIT / "fanout_jobs.py"), str(self.config_dir), *arguments]
        # Into files: what goes on after the command would hold a pipe open.
        with self.out.open("w") as out, self.err.open("w") as err:
            return subprocess.Popen(command, stdout=out, stderr=err, env=self.environment)

    def call(self, *arguments: str) -> tuple[int, str, str]:
        with self.start(*arguments) as process:
            process.wait(timeout=180)
        return process.returncode, self.out.read_text(), self.err.read_text()

    def run(self, *overrides: str) -> tuple[int, str, str]:
        return self.call("run", "toy", f"run_dir={self.run_dir}", *overrides)

    def status(self) -> dict[str, str]:
        """State of each job, as `orrery status` shows it."""
        code, out, _ = self.call("status", str(self.run_dir))
        assert code == 0
        return {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines() if re.match(r"job\d", line)}

    def wait_for(self, *names: str) -> None:
        """Until these jobs say how far they are."""
        paths = [self.jobs / name / "progress.json" for name in names]
        wait_until(lambda: all(path.exists() for path in paths))
        time.sleep(0.3)


def wait_until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


@pytest.fixture
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("project"))  # a path so short that no table folds it


def test_failures_are_listed_and_shown_and_only_they_run_again(project: Project) -> None:
    (project.faults / "job1").write_text("raise")
    code, _, err = project.run(*LOCAL)
    assert code == 2
    assert "error: 1 of 3 jobs of stage 'count' failed" in err
    assert "job1: ValueError: cannot count (failed after 1 attempt" in err
    _, out, _ = project.call("status", str(project.run_dir))
    assert "failed, see log.txt" in out
    (shown,) = [line for line in out.splitlines() if line.startswith("job1")]
    assert shown.split()[1:3] == ["failed", "1"]
    assert f"{project.jobs}/job1/log.txt" in shown
    assert shown.rstrip().endswith("ValueError: cannot count")

    (project.faults / "job1").unlink()
    code, out, _ = project.run(*LOCAL)
    assert code == 0
    assert "count: 2 of 3 jobs are already done" in out
    assert "counted 60, from 0 0 0" in out
    states = project.status()
    assert [states[name].split()[:2] for name in ("job0", "job1", "job2")] == [
        ["done", "1"],
        ["done", "2"],
        ["done", "1"],
    ]
    assert len(list(project.jobs.glob("*/result"))) == 3, "kept, for other settings of the stage"
    # How the work was done is no part of what was made.
    code, out, _ = project.run("count.fanout.executor=inline", "count.fanout.policies_per_job=7")
    assert (code, out.splitlines()[0]) == (0, "nothing to do: all stages are up to date")


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param([], id="inline"),
        pytest.param(LOCAL, id="local"),
        pytest.param(["count.fanout.executor=ray"], id="ray", marks=pytest.mark.ray),
    ],
)
def test_a_signal_saves_and_the_same_command_continues(project: Project, overrides: list[str]) -> None:
    if "count.fanout.executor=ray" in overrides:
        pytest.importorskip("ray")
    with project.start("run", "toy", f"run_dir={project.run_dir}", "count.until=60", "count.jobs=2", *overrides) as run:
        if overrides:
            project.wait_for("job0", "job1")
        else:
            wait_until(lambda: (project.jobs / "job0" / "result.partial").exists())
            time.sleep(0.3)
        run.send_signal(signal.SIGUSR1)
        assert run.wait(timeout=120) == 75
    assert "stopped by SIGUSR1 in stage count; rerun the command to continue" in project.err.read_text()
    assert project.status()["job0"].startswith("stopped 1")
    code, out, _ = project.run("count.until=60", "count.jobs=2", *overrides)
    assert code == 0
    (line,) = [line for line in out.splitlines() if "counted 120, from" in line]
    first = int(line.split("from ")[1].split()[0])
    assert 0 < first < 60


def test_jobs_end_with_a_killed_command_and_start_again(project: Project) -> None:
    with project.start("run", "toy", f"run_dir={project.run_dir}", "count.until=600", *LOCAL) as run:
        project.wait_for("job0", "job1")
        run.kill()
    assert project.status()["job0"].startswith("interrupted 1")
    wait_until(lambda: not processes_with(str(project.jobs)))
    assert project.run("count.until=5", *LOCAL)[0] == 0


def processes_with(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if text in command:
            found.append(command)
    return found


def test_detached_jobs_go_on_and_are_gathered(project: Project) -> None:
    (project.faults / "job2").write_text("raise")
    code, _, err = project.run("count.until=80", *SUBMITIT, DETACH)
    assert code == 75
    assert "count: 0 of 3 jobs done, 3 queued or running on executor slurm; rerun the command to collect them" in err
    project.wait_for("job0", "job1")
    wait_until(lambda: read_status(project.jobs / "job2").state == "failed")
    states = project.status()
    assert states["job0"].startswith("running 1")
    assert "counting" in states["job0"]

    # What has failed meanwhile is submitted again, what runs is let be.
    (project.faults / "job2").unlink()
    assert project.run("count.until=80", *SUBMITIT, DETACH)[0] == 75
    code, out, err = project.run("count.until=80", *SUBMITIT)
    assert code == 0, err
    assert "counted 240, from 0 0 0" in out
    states = project.status()
    assert [states[name].split()[:2] for name in ("job0", "job1", "job2")] == [
        ["done", "1"],
        ["done", "1"],
        ["done", "2"],
    ]


def test_detached_jobs_of_other_settings_are_ended(project: Project) -> None:
    assert project.run("count.until=6000", *SUBMITIT, DETACH)[0] == 75
    project.wait_for("job0", "job1", "job2")
    code, _, err = project.run("count.until=6000", *LOCAL)
    assert code == 2
    assert "3 jobs of count are queued or running on executor slurm" in err
    code, out, err = project.run("count.until=5", *LOCAL)
    assert code == 0, err
    assert "counted 15, from 0 0 0" in out
    assert not processes_with(str(project.jobs))


@pytest.fixture
def slurm(project: Project, tmp_path: Path) -> Iterator[Path]:
    """A mock of SLURM's commands on the PATH: jobs are processes, their states files in the folder it yields."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name in ("sbatch", "srun", "sacct", "scancel", "scontrol"):
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{MOCK_SLURM}" {name} "$@"\n')
        command.chmod(0o755)
    project.environment |= {"PATH": f"{folder}:{os.environ['PATH']}", "MOCK_SLURM": str(folder)}
    yield folder
    for path in folder.glob("*.pid"):
        try:
            os.killpg(int(path.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            continue


def test_on_slurm(project: Project, slurm: Path) -> None:
    options = [
        "count.fanout.options.partition=gpu",
        "count.fanout.options.gpus=1",
        "count.fanout.options.sbatch={constraint: a100}",
    ]
    (project.faults / "job1").write_text("raise")
    code, _, err = project.run("count.until=5", *SLURM, *options)
    assert code == 2
    assert "job1: ValueError: cannot count" in err
    script = next((project.jobs / ".submitit").glob("*_submission.sh")).read_text()
    for line in (
        "--partition=gpu",
        "--gpus-per-node=1",
        "--constraint=a100",
        "--time=6",
        "--cpus-per-task=1",
        "--array=0-2%3",
    ):
        assert f"#SBATCH {line}\n" in script

    (project.faults / "job1").unlink()
    code, out, err = project.run("count.until=5", *SLURM, *options)
    assert code == 0, err
    assert "counted 15, from 0 0 0" in out


def test_slurm_jobs_that_are_lost_cancelled_or_preempted(project: Project, slurm: Path) -> None:
    assert project.run("count.until=60", *SLURM, DETACH)[0] == 75
    project.wait_for("job0", "job1", "job2")
    # job0: its node is lost, watcher and all. job1: scancel. job2: preempted, then requeued by submitit.
    job0, job1, job2 = (int((slurm / f"1_{index}.pid").read_text()) for index in range(3))
    os.killpg(job0, signal.SIGKILL)
    os.killpg(job1, signal.SIGTERM)
    os.killpg(job2, signal.SIGUSR2)
    code, _, err = project.run("count.until=60", *SLURM)
    assert code == 0, err
    states = project.status()
    assert [states[name].split()[:2] for name in ("job0", "job1", "job2")] == [["done", "2"]] * 3
