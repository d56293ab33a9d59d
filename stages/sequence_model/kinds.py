"""Building and loading sequence models of every kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...datasets.schema import TaskTable, read_table
from ...pipeline.checkpoint import load_module
from ...pipeline.errors import CheckpointError
from ...pipeline.paths import user_path
from ...pipeline.reading import reading
from ...pipeline.saved_config import read_config
from .config import SequenceModelConfig
from .history import HistoryModel
from .networks import MarkovModel, SequenceModel
from .rerooted import ReRootedModel
from .sequence import ActionModel
from .stochastic import StochasticActionModel


def build_model(config: SequenceModelConfig, table: TaskTable) -> SequenceModel:
    """Return an untrained model of the config's kind."""
    kinds: dict[str, Callable[[SequenceModelConfig, TaskTable], SequenceModel]]
    kinds = {"markov": MarkovModel, "hwm": HistoryModel, "rerooted": ReRootedModel}
    if config.noise:
        return StochasticActionModel(config, table)
    return kinds.get(config.kind, ActionModel)(config, table)


def load_model(folder: str | Path) -> SequenceModel:
    """Load a model written by `SequenceModel.save`, frozen: evaluation mode, no gradients.

    Raises:
        CheckpointError: files missing, or weights that do not fit the config and task table, each named.
    """
    folder = user_path(folder)
    with reading(folder / "sequence_model.json", CheckpointError):
        config, table = read_config(folder, "sequence_model", SequenceModelConfig), read_table(folder)
        table.check_fits(folder / "sequence_model.safetensors")
        model = load_module(folder, "sequence_model", lambda: build_model(config, table))
    return model.eval().requires_grad_(False)
