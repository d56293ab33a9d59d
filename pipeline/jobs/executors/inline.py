"""Jobs one after another in this process."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ... import termination
from ...logging import LogFile
from ...stage import Context
from ..executor import Executor, JobResources
from ..job import LOG, State, describe_error, execute, log_end, log_start, read_status, write_status


class InlineExecutor(Executor):
    """One job after another in this process."""

    in_this_process = True
    slots = 1
    poll_seconds = 0.0

    def __init__(self, options: Any, resources: JobResources, context: Context) -> None:
        self._log, self._progress = context.log, context.progress

    def submit(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            self._run(folder)

    def _run(self, folder: Path) -> None:
        started = time.time()
        status = replace(read_status(folder), state="running", started=started, place=f"process {os.getpid()}")
        write_status(folder, status)
        log_start(folder, status.attempts)
        handler = LogFile(folder / LOG)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._log.addHandler(handler)
        state: State = "stopped"
        reason = "interrupted"
        try:
            execute(folder, self._log, self._progress)
            state, reason = "done", ""
        except Exception as error:
            if termination.requested():
                raise
            self._log.debug("job %s", folder.name, exc_info=True)
            state, reason = "failed", describe_error(error)
        finally:
            self._log.removeHandler(handler)
            handler.close()
            seconds = time.time() - started
            status = replace(status, state=state, error=reason, started=None, seconds=status.seconds + seconds)
            write_status(folder, status)
            log_end(folder, status, seconds)

    def ended(self, folder: Path) -> str | None:
        return ""

    def close(self) -> None:
        pass
