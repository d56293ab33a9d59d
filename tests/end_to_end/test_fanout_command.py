"""`orrery run` and `orrery status` over a stage that fans out: failing jobs, commands that are stopped or killed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from .toy_project import Project, wait_until

LOCAL = ["count.fanout.executor=local", "count.fanout.parallel_jobs=3"]


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


@pytest.mark.parametrize("overrides", [pytest.param([], id="inline"), pytest.param(LOCAL, id="local")])
def test_a_signal_saves_and_the_same_command_continues(project: Project, overrides: list[str]) -> None:
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
