"""World-model artifacts that hold one model per task."""

from __future__ import annotations

from pathlib import Path

from ...pipeline.reading import read_made

MODELS = "models.json"
"""Folder with one model per new task."""


def finetune_folders(artifact: Path) -> dict[str, Path]:
    """Return the folder of each new task's model in an artifact of finetune with `per_task`; empty if it holds one
    model."""
    path = artifact / MODELS
    if not path.is_file():
        return {}
    return {task: artifact / inner for task, inner in read_made(path, dict[str, str]).items()}
