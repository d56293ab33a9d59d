"""What a dataset format is: one class per format, named by an entry point in the group `orrery.formats`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ..schema import Behaviour
from .reader import EpisodeReader


class Format(ABC):
    """A dataset format. Orrery's own are asked first; the first that detects a dataset reads it."""

    has_columns: ClassVar[bool] = False
    """Whether `open` takes a column map."""

    @staticmethod
    @abstractmethod
    def detect(source: str, path: Path) -> bool:
        """Whether a dataset is of this format. Reads as little as possible, never an episode.

        Args:
            source: as the user wrote it: a path, or an id of the format's own.
            path: the same as a path, with ~ expanded.
        """

    @staticmethod
    @abstractmethod
    def task_name(source: str, path: Path) -> str:
        """The name of the task, unless the user gives one. Reads as little as possible."""

    @staticmethod
    @abstractmethod
    def files(source: str, path: Path) -> list[Path]:
        """The files that hold the episodes; when one changes, the dataset is packed again."""

    @staticmethod
    @abstractmethod
    def open(
        source: str,
        path: Path,
        *,
        columns: Any,
        name: str | None,
        behaviour: Behaviour | None,
        overrides: Mapping[str, Any] | None,
    ) -> EpisodeReader:
        """The reader of a dataset.

        Args:
            columns: None unless `has_columns`; see `columns.ColumnMap.load`.
            name: of the task; None is `task_name`.
            behaviour: how the data was made; None takes what the dataset states, else `unknown`.
            overrides: fields of TaskSpec, and `action_low`, `action_high` and `choices_start`, that replace the
                dataset's.
        Raises:
            DatasetError: it cannot be read.
        """
