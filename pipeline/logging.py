"""What a run shows while it works, and what it writes to RUN/log.txt.

On a terminal progress is a transient line with the time left; elsewhere it is one printed line at most
every `LINE_SECONDS`, so that a log file stays readable.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import TaskID as LineID
from rich.text import Text

from .stage import ProgressTask

LINE_SECONDS = 10.0
SPEED_LINES = 12
"""Lines over which the speed is measured that tells the time left: work may become slower on its way."""

LOGGER_NAME = "orrery"


@contextlib.contextmanager
def logging_to(console: Console, file: Path) -> Iterator[logging.Logger]:
    """Send orrery's log to the console (INFO) and to `file` (DEBUG, appended) while the block runs.

    Warnings that third-party libraries raise go to the file only: they are not addressed to our user.
    """
    logger = logging.getLogger(LOGGER_NAME)
    on_console = _ConsoleHandler(console)
    on_console.setLevel(logging.INFO)
    in_file = LogFile(file)
    in_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    third_party = logging.getLogger("py.warnings")
    former_level, former_propagate = logger.level, (logger.propagate, third_party.propagate)
    logger.setLevel(logging.DEBUG)
    logger.propagate = third_party.propagate = False
    logger.addHandler(on_console)
    logger.addHandler(in_file)
    third_party.addHandler(in_file)
    try:
        with warnings.catch_warnings():
            logging.captureWarnings(True)
            yield logger
    finally:
        logging.captureWarnings(False)
        logger.removeHandler(on_console)
        logger.removeHandler(in_file)
        third_party.removeHandler(in_file)
        in_file.close()
        logger.setLevel(former_level)
        logger.propagate, third_party.propagate = former_propagate


class LogFile(logging.FileHandler):
    """A log file. What a full disk does not take is lost: the work itself says that the disk is full, or needs none."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, encoding="utf-8")

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else ""
        self._console.print(Text(f"  {record.getMessage()}", style=style), soft_wrap=True)


class ConsoleProgress:
    """The `progress` of a stage's Context: `progress(description, total, completed=0)`."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = Console(highlight=False) if console is None else console

    def __reduce__(self) -> tuple[type[ConsoleProgress], tuple[()]]:
        # Training over several processes shows progress from its rank 0, on a console of its own.
        return ConsoleProgress, ()

    @contextlib.contextmanager
    def __call__(self, description: str, total: float, completed: float = 0) -> Iterator[ProgressTask]:
        if not self._console.is_terminal:
            yield _Lines(self._console, description, total, completed)
            return
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            yield _Bar(progress, progress.add_task(description, total=total, completed=int(completed), note=""))


class _Bar:
    def __init__(self, progress: Progress, line: LineID) -> None:
        self._progress = progress
        self._line = line

    def advance(self, amount: float = 1) -> None:
        self._progress.advance(self._line, amount)

    def note(self, text: str) -> None:
        self._progress.update(self._line, note=text)


class _Lines:
    def __init__(self, console: Console, description: str, total: float, completed: float) -> None:
        self._console = console
        self._description = description
        self._total = total
        self._completed = completed
        self._note = ""
        # Time and what was completed at the last lines, and before them where this attempt began, not a former one.
        self._marks = deque([(time.monotonic(), completed)], maxlen=SPEED_LINES)

    def advance(self, amount: float = 1) -> None:
        self._completed += amount
        now = time.monotonic()
        if now - self._marks[-1][0] < LINE_SECONDS:
            return
        since, before = self._marks[0]
        rate = (self._completed - before) / (now - since)
        self._marks.append((now, self._completed))
        left = f", {duration((self._total - self._completed) / rate)} left" if rate > 0 else ""
        note = f" {self._note}" if self._note else ""
        self._console.print(
            f"  {self._description} {self._completed:g}/{self._total:g}{left}{note}", markup=False, highlight=False
        )

    def note(self, text: str) -> None:
        self._note = text


def duration(seconds: float) -> str:
    """Seconds as a person says them: 0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if not seconds >= 59.5:  # also what a damaged record calls a time and is no number
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
