"""Facts about data that stages check: promised by the producing stage, and later read from the artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..pipeline.errors import ConfigError, DatasetError
from ..pipeline.reading import read_made, read_npz, reading
from .schema import read_table

EPISODES_FILE = "episodes.npz"
"""Offsets, ends and returns of the episodes of a task, in its folder of a store."""


@dataclass(frozen=True)
class DataFacts:
    """What is known of an artifact of kind datasets or store, which may not exist yet."""

    tasks: tuple[str, ...]
    longest: tuple[int, ...] | None = None
    """Steps of the longest episode of each task; None where they are not known yet."""

    def check_windows(self, steps: int, key: str, tasks: Sequence[str], folder: Path) -> None:
        """Raise a ConfigError that names `key` if one of `tasks` (empty: all) has no episode of so many steps."""
        lengths = dict(zip(self.tasks, self.longest or (), strict=False))
        short = {name: n for name, n in lengths.items() if n < steps and (not tasks or name in tasks)}
        if short:
            named = ", ".join(f"{name} {length}" for name, length in short.items())
            raise ConfigError(
                f"{key} is {steps}, but the longest episodes in {folder} have fewer steps: {named}. Set "
                f"{key}={min(short.values())} or less"
            )


@dataclass(frozen=True)
class DatasetsRecord:
    """What of datasets.json is read."""

    tasks: dict[str, dict[str, Any]]


def read_dataset_facts(folder: Path) -> DataFacts:
    """Facts on datasets that are there. Raises a StageError where datasets.json is missing or damaged."""
    return DataFacts(tuple(read_made(folder / "datasets.json", DatasetsRecord).tasks))


def read_store_facts(folder: Path) -> DataFacts:
    """Facts on a store that is there. Raises a CheckpointError or DatasetError where a file is missing or damaged."""
    table = read_table(folder)
    return DataFacts(table.names, tuple(_longest(folder / task.slug / EPISODES_FILE) for task in table))


def _longest(path: Path) -> int:
    with reading(path, DatasetError):
        offsets = read_npz(path, DatasetError)["offsets"]
        return int((offsets[1:] - offsets[:-1]).max()) - 1
