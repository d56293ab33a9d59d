"""The lock of a run folder, on local file systems and shared ones.

The kernel frees the lock of a process that has died. On a shared file system a server does, which may never notice that
a host is gone; and some have no locks. The holder therefore also writes its process and host into the file, and touches
it as a sign of life: a lock without one is broken, and a holder that finds its lock broken ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .errors import StageError
from .run_folder import try_to_write

LOCK_FILE = ".lock"
SIGN_OF_LIFE_SECONDS = 10.0
GONE_SECONDS = 90.0
"""Without a sign of life, after which another host counts as gone: attributes of files may be seen a minute late."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""The file system has no locks."""


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Create the run folder, see that it can be written, and keep other processes out of it.

    Raises:
        StageError: it cannot be written, or another process runs in it.
    """
    path = run_dir / LOCK_FILE
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        try_to_write(run_dir)
        lock = path.open("a+", encoding="utf-8")
        if not (held := _lock(lock)) and _host_is_gone(lock):
            lock.close()
            path.unlink(missing_ok=True)
            lock = path.open("a+", encoding="utf-8")
            held = _lock(lock)
    except OSError as error:
        broken = run_dir.is_symlink() and not run_dir.is_dir()
        reason = f"it is a link to {run_dir.readlink()}, which is not a folder" if broken else error.strerror
        raise StageError(
            f"cannot write to the run folder {run_dir.absolute()}: {reason}. Choose another folder with run_dir=PATH"
        ) from error
    with lock:
        if not held:
            raise StageError(
                f"{run_dir} is in use by {lock_holder(run_dir) or 'another process'}. "
                "Wait for it, stop it, or choose another folder with run_dir=PATH"
            )
        lock.seek(0)
        lock.truncate()
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        os.fsync(lock.fileno())  # other machines read it
        with _signs_of_life(lock, path):
            try:
                yield
            finally:
                lock.seek(0)
                lock.truncate()


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
            return None if _host_is_gone(lock) else _text(lock) or None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return _text(lock) if _lives(lock) else None
    return None


def _lock(lock: IO[str]) -> bool:
    """Take it, at once or shortly after: whoever asks for its holder has it for a moment."""
    for _ in range(10):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return not _lives(lock)
        else:
            return True
    return False


@contextlib.contextmanager
def _signs_of_life(lock: IO[str], path: Path) -> Iterator[None]:
    """Touch the file; end this process like SIGTERM does if another one has broken the lock."""
    over = threading.Event()

    def touch() -> None:
        while not over.wait(SIGN_OF_LIFE_SECONDS):
            with contextlib.suppress(OSError):  # a server that does not answer at the moment
                os.utime(lock.fileno())
                if path.stat().st_ino != os.fstat(lock.fileno()).st_ino:
                    return os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _text(lock: IO[str]) -> str:
    lock.seek(0)
    return lock.read().strip()


def _host_is_gone(lock: IO[str]) -> bool:
    """Whether the holder is on another host that gives no sign of life."""
    holder = re.fullmatch(r"process \d+ on (.+)", _text(lock))
    return holder is not None and holder[1] != socket.gethostname() and not _lives(lock)


def _lives(lock: IO[str]) -> bool:
    """Whether the process that the file names gives a sign of life."""
    if (holder := re.fullmatch(r"process (\d+) on (.+)", _text(lock))) is None:
        return False
    if holder[2] == socket.gethostname():
        try:
            os.kill(int(holder[1]), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True
    return _now(Path(lock.name).parent) - os.fstat(lock.fileno()).st_mtime < GONE_SECONDS


def _now(folder: Path) -> float:
    """By the clock of the folder's file system, where it can be asked."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
            probe.flush()
            return os.fstat(probe.fileno()).st_mtime
    except OSError:
        return time.time()
