"""The signals by which a scheduler says that it will take the machine away: what is under way is saved, then the
process ends.

By default the main thread raises Terminated where it is, as on Ctrl-C: whatever stages write is fit to be continued
at any time. A loop that can save its state wraps itself in `deferred()`, asks `requested()` where it can save, and
loses nothing:

    with termination.deferred():
        for step in range(first, steps):
            update(step)
            if checkpoint_is_due(step) or termination.requested():
                save(step)
            if termination.requested():
                break
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""SIGTERM, and those that clusters send ahead of time (sbatch --signal=USR1@60)."""

EXIT_UNFINISHED = os.EX_TEMPFAIL
"""75, "try again later": the state is kept and the same command continues. A scheduler may requeue the command."""


class Terminated(BaseException):
    """One of SIGNALS. Not an Exception, so that no job or stage takes it for a failure of its own."""

    def __init__(self, by: str = "") -> None:
        """Args:
        by: name of the signal; empty takes that which has come to this process, if it was to this one.
        """
        super().__init__(by)
        self.by = by or _State.requested or "a signal to another process of the run"

    def __str__(self) -> str:
        return f"stopped by {self.by}"


class _State:
    handling = False
    requested = ""
    """Name of the signal that has come."""
    deferrals = 0
    on_request: Callable[[], None] | None = None


def requested() -> bool:
    """Whether one of SIGNALS has come."""
    return bool(_State.requested)


def check() -> None:
    """Raise Terminated if one of SIGNALS has come and what it raised was lost, as in a destructor or a library."""
    if _State.requested and not _State.deferrals:
        raise Terminated


@contextmanager
def handled() -> Iterator[None]:
    """Answer SIGNALS as this module says while the block runs; outside the main thread, change nothing. What a second
    signal asks for is under way: it changes nothing."""
    if _State.handling or threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, _handle) for number in SIGNALS}
    _State.handling = True
    try:
        yield
    finally:
        for number, answer in former.items():
            signal.signal(number, answer)
        _State.handling, _State.requested = False, ""


@contextmanager
def deferred(on_request: Callable[[], None] | None = None) -> Iterator[None]:
    """Let SIGNALS wait until the block ends, where they raise Terminated; the block should see to that soon.

    Args:
        on_request: called when a signal comes, to pass it on to other processes, say.
    """
    _State.deferrals += 1
    former, _State.on_request = _State.on_request, on_request
    try:
        yield
    finally:
        _State.deferrals -= 1
        _State.on_request = former
    check()


@contextmanager
def kept_from_children() -> Iterator[None]:
    """Processes that are started while the block runs get neither SIGNALS nor Ctrl-C until they call `leave_to_parent`:
    a scheduler and a terminal send them to all, and the parent decides what comes of it."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, (*SIGNALS, signal.SIGINT))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def leave_to_parent() -> None:
    """Do nothing about SIGNALS and Ctrl-C in this process, without having processes that it starts do the same: those
    inherit what is blocked or ignored, and could not be ended by SIGTERM."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*SIGNALS, signal.SIGINT))


def answer_again() -> None:
    """Answer SIGNALS as this module says after a library has put its own answer in the place. A process that another
    one started and ends only notes them, for `requested()`."""
    if multiprocessing.parent_process() is not None:
        _State.deferrals += 1
    elif not _State.handling:
        return
    for number in SIGNALS:
        signal.signal(number, _handle)


def ignore() -> None:
    """For a process that is about to end with EXIT_UNFINISHED: another signal must not change that."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _handle(signum: int, frame: FrameType | None) -> None:
    if _State.requested:
        return
    _State.requested = signal.Signals(signum).name
    if _State.on_request is not None:
        _State.on_request()
    check()
