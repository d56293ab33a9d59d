"""What lies in a run folder beside the artifacts: unfinished attempts, and `run.json`.

A run folder holds one artifact per stage, `<stage>/`. While a stage works its folder is `<stage>.partial/`, with
`<stage>.partial.json` beside it that says for which key it is. `<stage>.jobs/` has a folder per job of its fan-out;
in `<stage>.ranks/` the processes meet that do a stage together. What other settings replaced is below `.kept/`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from .artifact import MadeFrom, write_json
from .errors import OrreryError, StageError
from .reading import decode, file_remedy, read_json

RUN_FILE = "run.json"
PARTIAL_SUFFIX = ".partial"
JOBS_SUFFIX = ".jobs"
KEPT_FOLDER = ".kept"


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk is full, the user's share of it is, or a file may not become that large."""


@contextlib.contextmanager
def disk_errors(folder: Path | None = None) -> Iterator[None]:
    """Turn what the file system refuses into a StageError that says which file and what to do; other errors pass.

    Args:
        folder: where the block writes.
    """
    try:
        yield
    except OrreryError:
        raise
    except Exception as error:
        if reason := _no_space(error, folder):
            place = (folder or Path.cwd()).absolute()
            kept = folder is not None and (folder / KEPT_FOLDER).is_dir()
            clean = f"`orrery clean {folder}` deletes artifacts of earlier settings. " if kept else ""
            free = shutil.disk_usage(next(one for one in (place, *place.parents) if one.is_dir())).free / 2**20
            raise StageError(
                f"the disk of {place} is full ({reason}; {free:,.0f} MiB free). {clean}Free some space and rerun the "
                "command to continue, or choose another folder with run_dir=PATH"
            ) from error
        # Of a loop of links pathlib makes a RuntimeError.
        found = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(found, OSError) and found.filename is not None:
            path = Path(os.fsdecode(found.filename))
            # shutil.rmtree names an entry by its last part alone.
            inside = folder is not None and len(path.parts) == 1 and not os.path.lexists(path)
            where = f"{path} in {folder}" if inside else str(path.absolute())
            raise StageError(f"{where}: {found.strerror}. {file_remedy(found, path.absolute(), folder)}") from error
        raise


def _no_space(error: BaseException, folder: Path | None) -> str:
    """The system's words for a lack of space if that is what an error comes from; else empty."""
    cause: BaseException | None = error
    while cause is not None:
        for number in NO_SPACE:
            # Safetensors and HDF5 say so in their text alone.
            if getattr(cause, "errno", None) == number or os.strerror(number) in str(cause):
                return os.strerror(number)
        cause = cause.__cause__ or cause.__context__
    try:  # torch and numpy only say that writing failed
        if folder is not None and folder.is_dir():
            try_to_write(folder)
    except OSError as found:
        return next((os.strerror(number) for number in NO_SPACE if found.errno == number), "")
    return ""


def try_to_write(folder: Path) -> None:
    """Raise the OSError of a disk that is full or cannot be written."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b"\0" * 4096)


@dataclass(frozen=True)
class Attempt:
    """An unfinished attempt at a stage."""

    key: str
    made_from: MadeFrom
    seconds: float = 0.0
    """Spent by this and earlier attempts with the same key, up to the last sign of life."""


@dataclass(frozen=True)
class _AttemptRecord(Attempt):
    """What the file of an attempt says."""

    started: float | None = None
    """Unix time at which it began; None once it has ended and its time is in `seconds`."""


def partial_folder(final: Path) -> Path:
    """Return the folder that a stage writes to before its artifact is published."""
    return final.with_name(final.name + PARTIAL_SUFFIX)


def attempt_file(final: Path) -> Path:
    """Return the file that describes an unfinished attempt."""
    return final.with_name(final.name + ".partial.json")


def jobs_folder(final: Path) -> Path:
    """Return the folder of a stage's fan-out jobs."""
    return final.with_name(final.name + JOBS_SUFFIX)


def write_attempt(final: Path, attempt: Attempt, *, running: bool) -> None:
    """Write the file of an unfinished attempt; `running` records its start time."""
    started = time.time() if running else None
    write_json(attempt_file(final), {**asdict(attempt), "started": started})


def read_attempt(final: Path) -> Attempt | None:
    """Return the unfinished attempt at the artifact `final`; None where there is none, or nothing can be read of it."""
    path = attempt_file(final)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StageError(f"{path}: {error.strerror}. {file_remedy(error, path.absolute())}") from error
    try:
        record = decode(_AttemptRecord, read_json(path, StageError))
    except (StageError, ValueError):
        return None
    seconds = record.seconds
    if record.started is not None:  # it was killed and could not write its time down
        times = [path.stat().st_mtime for path in partial_folder(final).rglob("*")]
        seconds += max(0.0, max(times, default=0.0) - record.started)
    return Attempt(record.key, record.made_from, seconds)
