"""Datasets in JSON lines: the first line names the task, every other is an episode."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from orrery.datasets.formats.format import Format
from orrery.datasets.schema import Behaviour, Episode, TaskSpec
from orrery.datasets.tasks import task_spec


class JsonLinesReader:
    """An EpisodeReader over one file."""

    def __init__(self, path: Path, name: str | None, behaviour: Behaviour | None) -> None:
        self._path = path
        self._lines = path.read_text().splitlines()
        self.name = name or JsonLines.task_name("", path)
        self.behaviour: Behaviour = behaviour or "unknown"
        self.warnings: list[str] = []

    @property
    def task(self) -> TaskSpec:
        return dataclasses.replace(task_spec(json.loads(self._lines[0])["task"]), name=self.name)

    @property
    def source(self) -> Mapping[str, Any]:
        return {"format": "jsonl", "path": str(self._path)}

    def __len__(self) -> int:
        return len(self._lines) - 1

    def __iter__(self) -> Iterator[Episode]:
        for number, line in enumerate(self._lines[1:]):
            values = json.loads(line)
            parts = (np.array(values[key], np.float32) for key in ("observations", "actions", "rewards"))
            yield Episode(*parts, terminated=values["terminated"], label=f"{self._path}:{number}")


class JsonLines(Format):
    """Files whose names end in .jsonl."""

    @staticmethod
    def detect(source: str, path: Path) -> bool:
        return path.suffix == ".jsonl"

    @staticmethod
    def task_name(source: str, path: Path) -> str:
        return f"jsonl/{path.stem}"

    @staticmethod
    def files(source: str, path: Path) -> list[Path]:
        return [path]

    @staticmethod
    def open(
        source: str,
        path: Path,
        *,
        columns: Any,
        name: str | None,
        behaviour: Behaviour | None,
        overrides: Mapping[str, Any] | None,
    ) -> JsonLinesReader:
        return JsonLinesReader(path, name, behaviour)
