"""Kill a process with SIGKILL at one of its file operations."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGING = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink")
"""Python reports these, and opening a file, to audit hooks; what C libraries do (HDF5, safetensors) it does not see."""


def kill_at(number: int, folder: Path, *, opened: bool = False) -> None:
    """Kill this process before its operation `number` (counted from 1) that changes something below `folder`.

    Args:
        opened: a file that is opened to be written is opened first, so that it is left empty.
    """
    below, count = str(folder), 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event == "open":
            path, _, flags = arguments
            if not flags & WRITING:
                return
        elif event in CHANGING:
            path, flags = arguments[0], 0
        else:
            return
        # rmtree names what is in a folder by its name alone.
        if isinstance(path, int) or (Path(name := os.fsdecode(path)).is_absolute() and not name.startswith(below)):
            return
        count += 1
        if count == number:
            if opened and flags:
                with contextlib.suppress(OSError):
                    os.close(os.open(path, flags, 0o644))
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def in_child(function: Callable[[], None]) -> int | None:
    """Call `function` in a fork of this process; returns its exit status, or None where it was killed."""
    if not (process := os.fork()):
        try:
            function()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    _, status = os.waitpid(process, 0)
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
