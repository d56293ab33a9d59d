"""The models of an artifact of kind world_model that holds one for each task."""

from __future__ import annotations

from pathlib import Path

from ...pipeline.reading import read_made

MODELS = "models.json"
"""Folder of each new task's model, where each has its own."""


def finetune_folders(artifact: Path) -> dict[str, Path]:
    """The folder of each new task's model, of an artifact made with `per_task`; empty where it holds one model."""
    path = artifact / MODELS
    if not path.is_file():
        return {}
    return {task: artifact / inner for task, inner in read_made(path, dict[str, str]).items()}
