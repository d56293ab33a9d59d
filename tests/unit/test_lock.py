"""The lock of a run folder: hosts that are gone, and file systems without locks."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from orrery.pipeline import lock as lock_module
from orrery.pipeline.errors import StageError
from orrery.pipeline.lock import GONE_SECONDS, LOCK_FILE, lock_holder, locked


@contextmanager
def held_by(folder: Path, holder: str, seconds_ago: float = 0.0) -> Iterator[None]:
    """The lock as a server keeps it for a host, which has given a sign of life so long ago."""
    with (folder / LOCK_FILE).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(holder)
        file.flush()
        os.utime(file.fileno(), (time.time() - seconds_ago,) * 2)
        yield


def test_a_living_host_keeps_its_lock(tmp_path: Path) -> None:
    with held_by(tmp_path, "process 7 on node3", GONE_SECONDS / 2):
        assert lock_holder(tmp_path) == "process 7 on node3"
        with pytest.raises(StageError, match="is in use by process 7 on node3"), locked(tmp_path):
            pass


def test_the_lock_of_a_host_that_is_gone_is_broken(tmp_path: Path) -> None:
    with held_by(tmp_path, "process 7 on node3", 2 * GONE_SECONDS):
        assert lock_holder(tmp_path) is None
        with locked(tmp_path):
            assert lock_holder(tmp_path) == f"process {os.getpid()} on {socket.gethostname()}"
            with pytest.raises(StageError, match=f"is in use by process {os.getpid()} on "), locked(tmp_path):
                pass
    assert lock_holder(tmp_path) is None


def test_a_lock_of_this_host_is_the_kernels_affair(tmp_path: Path) -> None:
    """A child of a process that has died may still hold it."""
    dead = f"process 999999999 on {socket.gethostname()}"
    with held_by(tmp_path, dead, 2 * GONE_SECONDS), pytest.raises(StageError, match=dead), locked(tmp_path):
        pass


def test_a_holder_gives_signs_of_life_and_ends_when_its_lock_is_broken(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lock_module, "SIGN_OF_LIFE_SECONDS", 0.05)
    ended = threading.Event()
    former = signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        with locked(tmp_path):
            os.utime(tmp_path / LOCK_FILE, (0, 0))
            time.sleep(0.3)
            assert (tmp_path / LOCK_FILE).stat().st_mtime > time.time() - 60
            assert not ended.is_set()
            (tmp_path / LOCK_FILE).unlink()
            (tmp_path / LOCK_FILE).touch()
            assert ended.wait(5)
    finally:
        signal.signal(signal.SIGTERM, former)


def test_without_locks_what_stands_in_the_file_counts(tmp_path: Path, monkeypatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock_module.fcntl, "flock", flock)
    with locked(tmp_path):
        assert lock_holder(tmp_path) == f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(StageError, match="is in use by process"), locked(tmp_path):
            pass
    assert lock_holder(tmp_path) is None
    (tmp_path / LOCK_FILE).write_text("process 7 on node3\n")
    with pytest.raises(StageError, match="is in use by process 7 on node3"), locked(tmp_path):
        pass
    os.utime(tmp_path / LOCK_FILE, (0, 0))
    with locked(tmp_path):
        pass
    (tmp_path / LOCK_FILE).write_text(f"process 999999999 on {socket.gethostname()}\n")
    with locked(tmp_path):  # it has died
        pass
