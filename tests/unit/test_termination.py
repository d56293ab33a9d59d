"""Signals that ask for the end: SIGTERM, and those that clusters send ahead of it."""

import os
import signal
import subprocess
import sys
import time

import pytest
from orrery.pipeline import termination


@pytest.mark.parametrize("number", termination.SIGNALS, ids=lambda number: number.name)
def test_each_of_the_signals_asks_for_the_end(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with termination.handled(), pytest.raises(termination.Terminated, match=f"^stopped by {number.name}$"):
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before
    assert not termination.requested()


def test_a_loop_that_can_save_is_not_cut_short() -> None:
    done, passed_on = [], []

    def work() -> None:
        with termination.deferred(lambda: passed_on.append(1)):
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert termination.requested()
            termination.check()
            done.append("saved")
        done.append("never")

    with termination.handled(), pytest.raises(termination.Terminated, match="SIGUSR1"):
        work()
    assert (done, passed_on) == (["saved"], [1])


def test_a_second_signal_does_not_cut_short_what_the_first_began() -> None:
    cleaned = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR2)
            cleaned.append("up")

    with termination.handled(), pytest.raises(termination.Terminated, match="SIGTERM"), termination.handled():
        work()
    assert cleaned == ["up"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_destructor_swallows_is_raised_at_the_next_check() -> None:
    class Loud:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    with termination.handled():
        Loud()
        with pytest.raises(termination.Terminated):
            termination.check()


def test_children_leave_signals_to_their_parent() -> None:
    with termination.kept_from_children():
        child = subprocess.Popen([sys.executable, "-c", "print('up', flush=True); input()"], stdin=-1, stdout=-1)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        for number in (*termination.SIGNALS, signal.SIGINT):
            child.send_signal(number)
        time.sleep(0.1)
        assert child.poll() is None
    finally:
        child.kill()
        child.communicate()


def test_a_command_that_is_told_twice_ends_with_75(tmp_path) -> None:
    """However close the second signal comes: while it cleans up, prints, or the interpreter ends."""
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from orrery.pipeline import cli, termination\n"
        "def slow(*_):\n"
        "    print('up', flush=True)\n"
        "    try:\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        time.sleep(0.3)\n"
        "cli._answer = slow\n"
        "sys.exit(cli.main())\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    while child.poll() is None:
        child.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    assert child.returncode == 75
    assert child.communicate()[1] == b"\nstopped by SIGTERM\n"
