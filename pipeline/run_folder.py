"""What lies in a run folder beside the artifacts: lock, unfinished attempts, and `run.json`.

A run folder holds one artifact per stage, `<stage>/`. While a stage works its folder is `<stage>.partial/`, with
`<stage>.partial.json` beside it that says for which key it is. `<stage>.jobs/` has a folder per job of its fan-out;
in `<stage>.ranks/` the processes meet that do a stage together.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .artifact import write_json
from .errors import StageError

RUN_FILE = "run.json"
LOCK_FILE = ".lock"
PARTIAL_SUFFIX = ".partial"
JOBS_SUFFIX = ".jobs"


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Create the run folder, see that it can be written, and keep other processes out of it.

    Raises:
        StageError: it cannot be written, or another process runs in it.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run_dir) as probe:
            probe.write(b"\0" * 4096)
        lock = (run_dir / LOCK_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise StageError(
            f"cannot write to the run folder {run_dir.absolute()}: {error.strerror}. Choose another with run_dir=PATH"
        ) from error
    with lock:
        try:
            _lock(lock)
        except BlockingIOError:
            raise StageError(
                f"{run_dir} is in use by {lock_holder(run_dir) or 'another process'}. "
                "Wait for it, stop it, or choose another folder with run_dir=PATH"
            ) from None
        lock.seek(0)
        lock.truncate()
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        os.fsync(lock.fileno())  # other machines read it
        try:
            yield
        finally:
            lock.seek(0)
            lock.truncate()


def _lock(lock: IO[str]) -> None:
    """Take it, at once or shortly after: whoever asks for its holder has it for a moment."""
    for attempts_left in reversed(range(10)):
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not attempts_left:
                raise
            time.sleep(0.05)


def lock_holder(run_dir: Path) -> str | None:
    """Return "process PID on HOST" of the process that works in `run_dir`, or None."""
    try:
        lock = (run_dir / LOCK_FILE).open(encoding="utf-8")
    except OSError:
        return None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return lock.read().strip() or None
    return None


@contextlib.contextmanager
def disk_errors(run_dir: Path) -> Iterator[None]:
    """Turn a full or read-only disk under `run_dir` into a StageError; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(run_dir).free / 2**20
            raise StageError(
                f"the disk of {run_dir.absolute()} is full ({error.strerror}; {free:,.0f} MiB free). Free some space "
                "and run the same command again: it continues. Or choose another folder with run_dir=PATH"
            ) from error
        place = Path(os.fsdecode(error.filename or run_dir)).absolute()
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and place.is_relative_to(run_dir.absolute()):
            raise StageError(
                f"cannot write {place}: {error.strerror}. Choose another folder with run_dir=PATH"
            ) from error
        raise


@dataclass(frozen=True)
class Attempt:
    """An unfinished attempt at a stage."""

    key: str
    seconds: float
    """Spent by this and earlier attempts with the same key, up to the last sign of life."""


def partial_folder(final: Path) -> Path:
    return final.with_name(final.name + PARTIAL_SUFFIX)


def attempt_file(final: Path) -> Path:
    return final.with_name(final.name + ".partial.json")


def jobs_folder(final: Path) -> Path:
    return final.with_name(final.name + JOBS_SUFFIX)


def write_attempt(final: Path, attempt: Attempt, *, running: bool) -> None:
    started = time.time() if running else None
    write_json(attempt_file(final), {"key": attempt.key, "seconds": attempt.seconds, "started": started})


def read_attempt(final: Path) -> Attempt | None:
    """Return the unfinished attempt at the artifact `final`, or None."""
    try:
        values: dict[str, Any] = json.loads(attempt_file(final).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    seconds = values["seconds"]
    if values["started"] is not None:  # it was killed and could not write its time down
        times = [path.stat().st_mtime for path in partial_folder(final).rglob("*")]
        seconds += max(0.0, max(times, default=0.0) - values["started"])
    return Attempt(values["key"], seconds)
