"""Begin training with the weights of an earlier model, for more steps or on more data of the same tasks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ...datasets.schema import read_table
from ...pipeline.checkpoint import load_weights
from ...pipeline.errors import CheckpointError
from ...pipeline.saved_config import read_config


def take_weights(model: Any, folder: Path, name: str) -> None:
    """Fill `model` with the weights in `folder`, the scales of observations and rewards included: they were learned on.

    Args:
        model: a WorldModel or a SequenceModel, of the settings and tasks that it is to have.
        name: of its files: model, or sequence_model.
    Raises:
        CheckpointError: the earlier model is of another kind, has other settings or other tasks; names what differs.
    """
    if not (folder / f"{name}.json").is_file():
        found = "a sequence model" if (folder / "sequence_model.json").is_file() else "no world model"
        raise CheckpointError(f"pretrain.start_from: expected {name}.json in {folder}, which has {found}")
    earlier = dataclasses.asdict(read_config(folder, name, type(model.config)))
    wanted = dataclasses.asdict(model.config)
    if different := [
        f"{key} {earlier[key]} -> {wanted[key]}" for key in wanted if not _same(earlier[key], wanted[key])
    ]:
        raise CheckpointError(
            f"pretrain.start_from: the model in {folder} has other settings than this run: {', '.join(different)}; use "
            "the same settings, or remove pretrain.start_from"
        )
    if (table := read_table(folder)) != model.table:
        raise CheckpointError(
            f"pretrain.start_from: the model in {folder} has the tasks {', '.join(table.names)}, the store has "
            f"{', '.join(model.table.names)}; they must be the same, in the same order and with the same settings"
        )
    load_weights(folder, name, model)


def _same(one: Any, other: Any) -> bool:
    """Equal, but for tuples that JSON has made lists of."""
    return (list(one) if isinstance(one, tuple) else one) == (list(other) if isinstance(other, tuple) else other)
