"""One job of a fan-out, as a folder: what it is, how far it is, what it wrote.

    <name>/job.json         what the job's result depends on: a function and its payload; and where its inputs are
    <name>/status.json      state, attempts, time, where it runs; its modification time is a sign of life
    <name>/log.txt          what all attempts printed
    <name>/progress.json    how far the present attempt is
    <name>/cpu_seconds.json CPU time of all attempts but those that were killed
    <name>/submission.json  where a job that outlives the command was submitted, until its end has been seen
    <name>/result.partial/  where the job writes; kept between attempts, so that it can continue
    <name>/result/          the same, finished: an artifact of kind `job`, with a digest of every file

The result is a pure function of job.json and the inputs, so it does not matter which executor runs the job, or
where, as long as the folder can be seen there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from .. import artifact
from ..errors import OrreryError, StageError
from ..logging import duration
from ..reading import decode, read_json, read_made, reading_made
from ..run_folder import JOBS_SUFFIX, disk_errors, partial_folder
from ..stage import ProgressTask

SPEC = "job.json"
STATUS = "status.json"
LOG = "log.txt"
PROGRESS = "progress.json"
CPU_SECONDS = "cpu_seconds.json"
SUBMISSION = "submission.json"
RESULT = "result"
RESULT_KIND = "job"

PROGRESS_SECONDS = 1.0

State = Literal["waiting", "submitted", "running", "done", "failed", "died", "timeout", "stopped"]
ENDED: tuple[State, ...] = ("done", "failed", "died", "timeout", "stopped")
"""failed: raised. died: exited without reporting a result. timeout: reached its time limit. stopped: by a signal, or
with the command that ran it; the last attempt can be continued."""


@dataclass(frozen=True)
class FolderJob:
    """A job to run."""

    name: str
    """Name of its folder; unique in the fan-out."""
    payload: Mapping[str, Any]
    """Argument of the job's function: JSON values."""
    not_hashed: Sequence[str] = ()
    """Dotted keys of `payload` that change speed, not the result (see `Stage.not_hashed`)."""


@dataclass(frozen=True)
class JobContext:
    """Passed to a job's function with its payload."""

    folder: Path
    """Output folder. It exists, and holds the files of an interrupted attempt at the same job."""
    inputs: Mapping[str, Path]
    """Artifact folders by name."""
    threads: int
    """CPU cores that the job may use."""
    workers: int
    """Processes that the job may start."""
    log: logging.Logger
    progress: Any
    """As in a stage's Context."""

    @property
    def logs(self) -> Path:
        """As in a stage's Context: the folder `logs` of the run."""
        return self.folder.parents[2] / "logs"

    @property
    def logged_as(self) -> str:
        """Name of the stage and of the job in `logs`."""
        return f"{self.folder.parents[1].name.removesuffix(JOBS_SUFFIX)}/{self.folder.parent.name}"


JobFunction = Callable[[Mapping[str, Any], JobContext], None]
"""A function of a module. It continues from what it finds in the folder, or overwrites it; asked to
end, it saves its state there if it can (see `termination`)."""


@dataclass(frozen=True)
class JobStatus:
    """Progress of a job."""

    state: State = "waiting"
    attempts: int = 0
    seconds: float = 0.0
    """Time of finished attempts."""
    started: float | None = None
    """Unix time at which the current attempt started."""
    executor: str = ""
    """Of the present or last attempt."""
    place: str = ""
    """Process and host of the present or last attempt."""
    error: str = ""
    """Error of the last attempt."""

    @property
    def host(self) -> str:
        """Host of the present or last attempt."""
        return self.place.rpartition(" on ")[2]


@dataclass(frozen=True)
class JobKeys:
    """The keys of jobs that call `function` on inputs with these digests: those with the same key have the same result,
    whatever they are called and whichever setting of the stage they were made for."""

    function: JobFunction
    digests: Mapping[str, str]
    version: str

    @classmethod
    def of(
        cls,
        function: JobFunction,
        inputs: Mapping[str, Path],
        hashed: Collection[str] | None = None,
        providers: str = "",
    ) -> JobKeys:
        """Args:
        hashed: inputs whose content counts as a whole; None for all. Of others, payloads say what matters.
        providers: as in the stage's Context.
        """
        counted = inputs if hashed is None else set(hashed) & inputs.keys()
        digests = {name: artifact.digest_of(inputs[name]) for name in sorted(counted)}
        return cls(function, digests, artifact.version_of(providers))

    def key(self, job: FolderJob) -> str:
        hashed = artifact.without(job.payload, job.not_hashed)
        return artifact.hash_json([_path(self.function), hashed, self.digests, self.version])


def prepare(
    folder: Path,
    job: FolderJob,
    key: str,
    function: JobFunction,
    inputs: Mapping[str, Path],
    *,
    threads: int,
    workers: int,
) -> None:
    """Write job.json."""
    folder.mkdir(exist_ok=True)
    spec = {
        "key": key,
        "function": _path(function),
        "payload": job.payload,
        "inputs": {name: str(input_.absolute()) for name, input_ in inputs.items()},
        "threads": threads,
        "workers": workers,
    }
    artifact.write_json(folder / SPEC, spec)


def read_job(folder: Path) -> tuple[str, dict[str, Any]]:
    """Key and payload of the job in a folder; empty where there is none, or a damaged one."""
    spec = _read_json(folder / SPEC)
    payload = spec.get("payload")
    return str(spec.get("key", "")), payload if isinstance(payload, dict) else {}


def _path(function: JobFunction) -> str:
    return f"{function.__module__}:{function.__qualname__}"


@dataclass(frozen=True)
class _Spec:
    """job.json."""

    key: str
    function: str
    payload: dict[str, Any]
    inputs: dict[str, str]
    threads: int
    workers: int


def execute(folder: Path, log: logging.Logger, progress: Any) -> None:
    """Do the job in this process and publish its result."""
    with reading_made(folder / SPEC):
        spec = read_made(folder / SPEC, _Spec)
    module, _, name = spec.function.partition(":")
    try:
        function: JobFunction = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise StageError(
            f"{spec.function} of {folder / SPEC} cannot be imported on {socket.gethostname()}: {error}. Every machine "
            "that runs jobs needs the same version of Orrery and of the packages that bring its stages"
        ) from error
    final = folder / RESULT
    partial = partial_folder(final)
    partial.mkdir(exist_ok=True)
    started, cpu_started = time.time(), time.process_time()
    inputs = {input_name: Path(path) for input_name, path in spec.inputs.items()}
    with disk_errors(folder):
        try:
            function(spec.payload, JobContext(partial, inputs, spec.threads, spec.workers, log, progress))
        finally:
            artifact.write_json(folder / CPU_SECONDS, cpu_seconds(folder) + time.process_time() - cpu_started)
        artifact.finish(
            partial,
            kind=RESULT_KIND,
            stage=folder.name,
            key=spec.key,
            config=spec.payload,
            inputs={},
            seconds=time.time() - started,
            summary="",
        )
        artifact.publish(partial, final)


def cpu_seconds(folder: Path) -> float:
    """CPU time of a job over its attempts, without those that were killed; 0 where it is not known."""
    try:
        return decode(float, read_json(folder / CPU_SECONDS, StageError))
    except (StageError, ValueError):
        return 0.0


def is_done(folder: Path) -> bool:
    """Whether the job's result is there.

    Raises:
        StageError: it is there but damaged; says what is wrong with it.
    """
    final = folder / RESULT
    artifact.recover(partial_folder(final), final)
    if not final.is_dir():
        return False
    if artifact.read_manifest(final) is None:
        raise StageError(f"{final} has no {artifact.MANIFEST}")
    artifact.verify(final, RESULT_KIND)
    return True


def discard_result(folder: Path) -> None:
    """Remove what the job wrote; its log and status stay."""
    for path in (folder / RESULT, partial_folder(folder / RESULT), folder / CPU_SECONDS):
        artifact.remove(path)
    artifact.remove_unfinished(folder)


def log_start(folder: Path, attempt: int) -> None:
    """Begin the part of an attempt in the job's log."""
    _append(folder, f"--- attempt {attempt} on {socket.gethostname()}, {time.strftime('%Y-%m-%d %H:%M:%S')}")


def log_end(folder: Path, status: JobStatus, seconds: float) -> None:
    """Say in the job's log how an attempt ended; of a process that was killed nobody else does."""
    reason = f": {status.error}" if status.error else ""
    _append(folder, f"--- {status.state} after {duration(seconds)}{reason}")


def _append(folder: Path, line: str) -> None:
    with contextlib.suppress(OSError), (folder / LOG).open("a", encoding="utf-8") as log:  # a full disk
        log.write(f"{line}\n")


def describe_error(error: BaseException) -> str:
    """One line for a list of failures: our own messages as they are, others with the type of the exception."""
    name = "" if isinstance(error, OrreryError) else f"{type(error).__name__}: "
    return " ".join(f"{name}{error}".split())


def read_status(folder: Path) -> JobStatus:
    """Read status.json; `waiting` if it is missing or damaged."""
    try:
        return decode(JobStatus, _read_json(folder / STATUS))
    except ValueError:
        return JobStatus()


def write_status(folder: Path, status: JobStatus) -> None:
    """Write status.json."""
    artifact.write_json(folder / STATUS, asdict(status))


def seconds_spent(folder: Path, status: JobStatus) -> float:
    """Over all attempts; of the present one, up to its last sign of life."""
    if status.started is None:
        return status.seconds
    return status.seconds + max(0.0, (folder / STATUS).stat().st_mtime - status.started)


class FileProgress:
    """The `progress` of a job that runs in a process of its own: progress.json, at most once a second."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / PROGRESS

    @contextlib.contextmanager
    def __call__(self, description: str, total: float, completed: float = 0) -> Iterator[ProgressTask]:
        task = _FileProgressTask(self._path, description, total, completed)
        yield task
        task.write()


@dataclass(frozen=True)
class _Progress:
    """What progress.json says."""

    description: str
    total: float
    completed: float
    note: str


class _FileProgressTask:
    def __init__(self, path: Path, description: str, total: float, completed: float) -> None:
        self._path, self._description, self._total, self._completed = path, description, total, completed
        self._note = ""
        self.write()

    def advance(self, amount: float = 1) -> None:
        self._completed += amount
        if time.monotonic() - self._written >= PROGRESS_SECONDS:
            self.write()

    def note(self, text: str) -> None:
        self._note = text

    def write(self) -> None:
        self._written = time.monotonic()
        progress = _Progress(self._description, self._total, self._completed, self._note)
        with artifact.replacing(self._path) as temporary:
            temporary.write_text(json.dumps(asdict(progress)))


def read_progress(folder: Path) -> str:
    """In a few words how far the present or last attempt is; empty where it has not said."""
    try:
        progress = decode(_Progress, _read_json(folder / PROGRESS))
    except ValueError:
        return ""
    return f"{progress.description} {progress.completed:g}/{progress.total:g} {progress.note}".rstrip()


def _read_json(path: Path) -> dict[str, Any]:
    """What a file says; nothing where there is none, or a damaged one."""
    try:
        values = read_json(path, StageError)
    except StageError:
        return {}
    return values if isinstance(values, dict) else {}
