"""SIGTERM, which a scheduler sends before it takes the machine away: what is under way is saved, then the process ends.

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

EXIT_UNFINISHED = os.EX_TEMPFAIL
"""75, "try again later": the state is kept and the same command continues. A scheduler may requeue the command."""


class Terminated(BaseException):
    """SIGTERM. Not an Exception, so that no job or stage takes it for a failure of its own."""


class _State:
    handling = False
    requested = False
    deferrals = 0
    on_request: Callable[[], None] | None = None


def requested() -> bool:
    """Whether SIGTERM has come."""
    return _State.requested


@contextmanager
def handled() -> Iterator[None]:
    """Answer SIGTERM as this module says while the block runs; outside the main thread, change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former, was_handling = signal.signal(signal.SIGTERM, _handle), _State.handling
    _State.handling = True
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
        _State.handling = was_handling
        _State.requested = False


@contextmanager
def deferred(on_request: Callable[[], None] | None = None) -> Iterator[None]:
    """Let SIGTERM wait until the block ends, where it raises Terminated; the block should see to that soon.

    Args:
        on_request: called when SIGTERM comes, to pass it on to other processes, say.
    """
    _State.deferrals += 1
    former, _State.on_request = _State.on_request, on_request
    try:
        yield
    finally:
        _State.deferrals -= 1
        _State.on_request = former
    if _State.requested and not _State.deferrals:
        raise Terminated


def answer_again() -> None:
    """Answer SIGTERM as this module says after a library has put its own answer in the place. A process that another
    one started and ends only notes it, for `requested()`."""
    if multiprocessing.parent_process() is not None:
        _State.deferrals += 1
    elif not _State.handling:
        return
    signal.signal(signal.SIGTERM, _handle)


def _handle(signum: int, frame: FrameType | None) -> None:
    _State.requested = True
    if _State.on_request is not None:
        _State.on_request()
    if not _State.deferrals:
        raise Terminated
