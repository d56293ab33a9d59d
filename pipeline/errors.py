"""Errors written for the user.

Each says what was expected, what was found, where, and what to do next; the command line prints the message without a
traceback. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

EXIT_BUG = 1
EXIT_USER_ERROR = 2
"""Exit status of a command that ends with one of these."""


class OrreryError(Exception):
    """Base class of errors whose message is written for the user."""


class ConfigError(OrreryError, ValueError):
    """A setting is unknown, has the wrong type, or contradicts another."""


class TaskError(OrreryError):
    """A task name is unknown, or its environment cannot be built."""


class DatasetError(OrreryError):
    """A dataset or store is missing, malformed, or not what its manifest says."""


class CheckpointError(OrreryError):
    """Weights, their config and the task table do not fit together."""


class ExportError(OrreryError):
    """A policy cannot be exported, or its exported form acts differently."""


class StageError(OrreryError):
    """A stage cannot run: an input is missing, stale or damaged, or its folder cannot be written."""


class Detached(Exception):
    """Jobs continue without this command."""


class StageInterrupted(KeyboardInterrupt):
    """Ctrl-C during a stage."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.stage = stage


@contextlib.contextmanager
def labelled(label: str) -> Iterator[None]:
    """Start the message of an OrreryError with a label, which says what it is about; none if the label is empty."""
    try:
        yield
    except OrreryError as error:
        if not label:
            raise
        raise type(error)(f"{label}: {error}") from error
