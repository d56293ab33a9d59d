"""A job in a process of its own, and the watch over it: the same for every executor that can lose a job.

`JobProcess` starts `python -m orrery.pipeline.jobs.process FOLDER`, which does the job and ends with 0 (published),
1 (raised) or 75 (asked to end by a signal; its state is saved), with the reason in error.txt. Whatever else happens to
it, the watcher writes into status.json. When the watcher dies, the process ends, too.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from .. import termination
from ..logging import LOGGER_NAME
from .job import (
    LOG,
    PROGRESS,
    STATUS,
    FileProgress,
    State,
    describe_error,
    execute,
    log_end,
    log_start,
    read_status,
    write_status,
)

ERROR = "error.txt"

GRACE_SECONDS = 20.0
"""Between SIGTERM, at which a job saves its state, and SIGKILL."""

SIGN_OF_LIFE_SECONDS = 10.0

_POLL_SECONDS = 0.1


class JobProcess:
    """An attempt at a job. `poll` has to be called until it returns True."""

    def __init__(
        self, folder: Path, *, limit_seconds: float = 0.0, environment: Mapping[str, str] | None = None
    ) -> None:
        """Args:
        folder: the job's, with a status.json that counts this attempt and a job.json.
        limit_seconds: after which the job is stopped; 0 is none.
        environment: variables beside those of this process.
        """
        self._folder = folder
        self._limit = limit_seconds
        self._started = self._alive = time.monotonic()
        self._kill_at: float | None = None
        self._reason: State | None = None
        for leftover in (ERROR, PROGRESS):
            (folder / leftover).unlink(missing_ok=True)
        started = time.time()
        status = read_status(folder)
        log_start(folder, status.attempts)
        with (folder / LOG).open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(folder)],
                # Never written to: the process ends when this end closes, which the kernel also does when this
                # process is killed.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                # Of Ctrl-C, which reaches the whole group of the terminal, this process decides what comes of it.
                start_new_session=True,
            )
        place = f"process {self._process.pid} on {socket.gethostname()}"
        self._status = replace(status, state="running", started=started, place=place, error="")
        write_status(folder, self._status)

    def poll(self) -> bool:
        """See to the time limit and the sign of life. True when the attempt has ended and status.json says how."""
        now = time.monotonic()
        code = self._process.poll()
        if code is None:
            if self._limit and now - self._started > self._limit:
                self.stop("timeout")
            if self._kill_at is not None and now > self._kill_at:
                self._kill()
            if now - self._alive > SIGN_OF_LIFE_SECONDS:
                self._alive = now
                os.utime(self._folder / STATUS)
            return False
        if self._status.started is not None:
            self._end(code)
        return True

    def stop(self, reason: State = "stopped") -> None:
        """Ask the job to save its state and end; it is killed where it has not after GRACE_SECONDS."""
        if self._kill_at is None:
            self._reason = reason
            self._kill_at = time.monotonic() + GRACE_SECONDS
            self._process.terminate()

    def wait(self) -> None:
        """Return when the attempt has ended."""
        while not self.poll():
            time.sleep(_POLL_SECONDS)

    def _kill(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            self._process.kill()

    def _end(self, code: int) -> None:
        self._kill()  # what it may have started itself
        if self._process.stdin is not None:
            self._process.stdin.close()
        state, error = self._verdict(code)
        seconds = self._status.seconds + time.time() - (self._status.started or time.time())
        self._status = replace(self._status, state=state, error=error, seconds=seconds, started=None)
        write_status(self._folder, self._status)
        log_end(self._folder, self._status, time.monotonic() - self._started)
        (self._folder / ERROR).unlink(missing_ok=True)

    def _verdict(self, code: int) -> tuple[State, str]:
        if code == 0:
            return "done", ""
        if self._reason == "timeout":
            return "timeout", f"reached the time limit of {self._limit / 60:g} min"
        error = self._folder / ERROR
        if code == termination.EXIT_UNFINISHED and error.is_file():
            return "stopped", error.read_text(encoding="utf-8")
        if self._reason == "stopped" or -code in termination.SIGNALS:  # before it could answer
            return "stopped", str(termination.Terminated(signal.Signals(-code).name if code < 0 else ""))
        if code == 1 and error.is_file():
            return "failed", error.read_text(encoding="utf-8")
        if code < 0:
            killed = "; out of memory, or killed" if -code == signal.SIGKILL else ""
            return "died", f"its process was killed by {signal.Signals(-code).name}{killed}"
        return "died", f"its process exited with status {code} without reporting a result"


def main(folder: Path) -> int:
    """Do the job in `folder`; returns the exit code."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if not sys.warnoptions:
        warnings.simplefilter("default")
    try:
        with termination.handled():
            execute(folder, logging.getLogger(LOGGER_NAME), FileProgress(folder))
    except termination.Terminated as stop:
        print(stop, file=sys.stderr)
        (folder / ERROR).write_text(str(stop), encoding="utf-8")
        return termination.EXIT_UNFINISHED
    except Exception as error:
        traceback.print_exc()
        (folder / ERROR).write_text(describe_error(error), encoding="utf-8")
        return 1
    return 0


def _exit_with_parent() -> None:
    # Not through sys.stdin: its lock, held by this thread, would be waited for when the interpreter shuts down.
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
