"""One interface for every dataset that can be read: a task, its provenance, and its episodes in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from ..schema import Behaviour, Episode, TaskSpec


class EpisodeReader(Protocol):
    """A dataset of one task. Iterating reads one episode at a time, in a fixed order, and may be repeated."""

    behaviour: Behaviour

    @property
    def name(self) -> str:
        """Of the task. Known without reading episodes."""
        ...

    @property
    def task(self) -> TaskSpec:
        """May read the dataset when first asked for, where the dataset does not state its task."""
        ...

    @property
    def source(self) -> Mapping[str, Any]:
        """Provenance as JSON: format, path, the names of the observation columns, and how actions were scaled."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """What is probably not meant, in words: where settings, environment and data disagree."""
        ...

    def __len__(self) -> int:
        """Number of episodes."""
        ...

    def __iter__(self) -> Iterator[Episode]: ...
