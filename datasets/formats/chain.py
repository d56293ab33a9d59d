"""Several datasets of one task as one: what each round of an iteration has collected, one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...pipeline.errors import DatasetError
from ..schema import Behaviour, Episode, TaskSpec
from .reader import EpisodeReader


class ChainReader:
    """An EpisodeReader over the episodes of several, in order. Their tasks have to be the same."""

    def __init__(self, readers: Sequence[EpisodeReader]) -> None:
        """Args:
            readers: two or more; the first one's task is that of the whole.
        Raises:
            DatasetError: the tasks differ; says in what.
        """
        self._readers = list(readers)
        first = self._readers[0]
        for reader in self._readers[1:]:
            ours, theirs = first.task.to_dict(), reader.task.to_dict()
            if different := [f"{key} {ours[key]!r} and {theirs[key]!r}" for key in ours if ours[key] != theirs[key]]:
                raise DatasetError(
                    f"{reader.source.get('path')}: task {reader.task.name!r} cannot be joined with {first.task.name!r} "
                    f"of {first.source.get('path')}, which differs in {'; '.join(different)}; leave one of them out"
                )
        self.behaviour: Behaviour = joint_behaviour([reader.behaviour for reader in self._readers])

    @property
    def name(self) -> str:
        return self._readers[0].name

    @property
    def task(self) -> TaskSpec:
        return self._readers[0].task

    @property
    def source(self) -> Mapping[str, Any]:
        parts = [{**reader.source, "episodes": len(reader)} for reader in self._readers]
        columns = self._readers[0].source.get("columns", ())
        return {"format": "several", "columns": columns, "parts": parts}

    @property
    def warnings(self) -> list[str]:
        return list(dict.fromkeys(said for reader in self._readers for said in reader.warnings))

    def __len__(self) -> int:
        return sum(map(len, self._readers))

    def __iter__(self) -> Iterator[Episode]:
        for number, reader in enumerate(self._readers, 1):
            for episode in reader:
                # Every round names its datasets and episodes alike.
                yield dataclasses.replace(episode, label=f"part {number} of {len(self._readers)}: {episode.label}")


def joint_behaviour(parts: Sequence[Behaviour]) -> Behaviour:
    """How data was made that comes from several behaviours: exploration if any of it does, since it is then wide
    enough to trust a model on; else replay if any does; else what they all are, or policy."""
    for wide in ("exploration", "replay"):
        if wide in parts:
            return wide
    return parts[0] if len(set(parts)) == 1 else "policy"
