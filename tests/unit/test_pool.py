import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from orrery.pipeline.errors import ConfigError, StageError
from orrery.pipeline.jobs.pool import JobFailure, run_all, run_jobs


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import pool_jobs

    return pool_jobs


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_a_failed_job_and_a_dead_worker_cost_only_themselves(jobs) -> None:
    results = dict(run_jobs(jobs.square, [0, 1, 2, 3, 4, 5], workers=2))

    assert {index: results[index] for index in (0, 1, 4, 5)} == {0: (0, "1"), 1: (1, "1"), 4: (16, "1"), 5: (25, "1")}
    raised, died = results[2], results[3]
    assert isinstance(raised, JobFailure)
    assert raised.job == 2
    assert raised.error == "TwoArgumentError: 2 and 3"
    assert "in square" in raised.traceback
    assert isinstance(died, JobFailure)
    assert died.job == 3
    assert "died" in died.error


def test_one_worker_runs_inline_and_in_order() -> None:
    results = list(run_jobs(lambda job: (os.getpid(), 1 / job), [1, 0, 2], workers=1))

    assert [index for index, _ in results] == [0, 1, 2]
    assert results[0][1] == (os.getpid(), 1.0)
    assert isinstance(results[1][1], JobFailure)
    assert results[1][1].error == "ZeroDivisionError: division by zero"


def test_where_all_jobs_must_succeed_the_first_failure_says_which_and_what_is_kept() -> None:
    ended = []
    with pytest.raises(
        StageError, match=r"^0: ZeroDivisionError: division by zero; finished tasks are kept; rerun the"
    ) as raised:
        ended += run_all(lambda job: 1 / job, [2, 0, 1], workers=1, kept="finished tasks")
    assert "1 / job" in raised.value.__notes__[0]  # the log has the traceback

    assert ended == [(2, 0.5)]
    assert dict(run_all(lambda job: 1 / job, [2, 1], workers=1)) == {2: 0.5, 1: 1.0}


def test_an_error_written_for_the_user_comes_alone() -> None:
    def refuse(job: int) -> None:
        raise ConfigError(f"{job} is too large")

    with pytest.raises(StageError) as raised:
        list(run_all(refuse, [7], workers=1))
    assert str(raised.value) == "7: 7 is too large"


def test_workers_can_end_processes_of_their_own(jobs) -> None:
    assert dict(run_jobs(jobs.start_and_end_a_process, [0, 0], workers=2)) == {0: -15, 1: -15}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_workers_leave_signals_to_their_parent(jobs, tmp_path: Path, number: signal.Signals) -> None:
    """Which gets them, too, from a scheduler; what it then does is its affair."""
    results = run_jobs(jobs.leave_pid_and_sleep, [(tmp_path, 1.0), (tmp_path, 0.0)], workers=2)
    next(results)
    assert wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    for path in tmp_path.iterdir():
        os.kill(int(path.name), number)
    assert list(results) == [(0, None)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_are_stopped_when_the_caller_stops(jobs, tmp_path: Path) -> None:
    results = run_jobs(jobs.leave_pid_and_sleep, [(tmp_path, 60.0), (tmp_path, 0.0)], workers=2)
    next(results)
    assert wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert all(alive(pid) for pid in pids)
    results.close()
    assert not any(alive(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from pool_jobs import leave_pid_and_sleep\n"
        "from orrery.pipeline.jobs.pool import run_jobs\n"
        "list(run_jobs(leave_pid_and_sleep, [(Path(sys.argv[1]), 60.0)] * 2, workers=2))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    try:
        assert wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    finally:
        parent.kill()
        parent.wait()
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert wait_until(lambda: not any(alive(pid) for pid in pids))
