"""Facts about data that stages check: promised by the producing stage, and later read from the artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..pipeline.reading import read_made
from .schema import read_table


@dataclass(frozen=True)
class DataFacts:
    """What is known of an artifact of kind datasets or store, which may not exist yet."""

    tasks: tuple[str, ...]


@dataclass(frozen=True)
class DatasetsRecord:
    """What of datasets.json is read."""

    tasks: dict[str, dict[str, Any]]


def read_dataset_facts(folder: Path) -> DataFacts:
    """Facts on datasets that are there. Raises a StageError where datasets.json is missing or damaged."""
    return DataFacts(tuple(read_made(folder / "datasets.json", DatasetsRecord).tasks))


def read_store_facts(folder: Path) -> DataFacts:
    """Facts on a store that is there. Raises a CheckpointError where tasks.json is missing or damaged."""
    return DataFacts(read_table(folder).names)
