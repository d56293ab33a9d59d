"""What a stage may know of a world model: promised by the stage that will make it, and then read from the artifact.

Reading needs no torch, so that a model that does not serve is refused before anything runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ...datasets.schema import read_table
from ...pipeline.artifact import MANIFEST, read_manifest
from ...pipeline.errors import CheckpointError
from ...pipeline.reading import read_made, reading
from ...pipeline.saved_config import read_config
from ..sequence_model.config import SETTINGS, SequenceModelConfig, check_horizon
from .config import WorldModelConfig

MODELS = "models.json"
"""Folder of each task's model by task, in an artifact that holds several."""


@dataclass(frozen=True)
class ModelFacts:
    """What is known of an artifact of kind world_model, which may not exist yet."""

    predicts: Literal["latents", "observations"] = "latents"
    dynamics: str = "step"
    """Of a latent model, as `pretrain.model.dynamics`; of a model of observations its kind."""
    values: bool = True
    """Whether it has value functions and a policy prior."""
    rewards: bool = True
    """Whether it predicts rewards."""
    longest_prediction: int | None = None
    """Steps that it can look ahead; None is any number."""
    tasks: tuple[str, ...] | None = None
    """Of its table; None where they are not known yet. Of several models, those that have one."""
    model_per_task: bool = False
    """Whether the artifact holds a model for each task, below `models/`."""
    config: WorldModelConfig | None = None
    """Of a latent model, complete; None where it is not known yet."""

    @classmethod
    def of(cls, config: WorldModelConfig | SequenceModelConfig, tasks: Sequence[str] | None) -> ModelFacts:
        """Of a model with this config."""
        known = None if tasks is None else tuple(tasks)
        limit = config.longest_prediction()
        if isinstance(config, SequenceModelConfig):
            return cls("observations", config.kind, False, config.reward_head, limit, known)
        complete = config.complete()
        return cls("latents", config.dynamics, complete.num_q > 0, True, limit, known, config=complete)

    def check_horizon(self, horizon: int, key: str, folder: Path) -> None:
        """Raise a ConfigError that names `key` unless the model can look `horizon` steps ahead."""
        settings = SETTINGS if self.predicts == "observations" else SETTINGS[:1]
        model = f"the world model in {folder} ({self.dynamics})"
        check_horizon(horizon, self.longest_prediction, key, model, *settings)

    def check_single(self, stage: str, folder: Path) -> None:
        """Raise a CheckpointError that names `stage` if the artifact holds a model for each task."""
        if self.model_per_task:
            raise CheckpointError(
                f"{stage} reads one world model, but {folder} holds one for each of {', '.join(self.tasks or ())} "
                f"(finetune.per_task=true); give the folder of one: world_model={folder / 'models'}/TASK"
            )

    def check_predicts(self, wanted: Literal["latents", "observations"], stage: str, folder: Path) -> None:
        """Raise a CheckpointError that names `stage` unless the model predicts this."""
        if self.predicts != wanted:
            kind = "latent" if wanted == "latents" else "sequence"
            raise CheckpointError(
                f"{stage} needs a world model that predicts {wanted}, but the one in {folder} predicts "
                f"{self.predicts}; pretrain one with pretrain.kind={kind}"
            )


def read_model_facts(folder: Path) -> ModelFacts:
    """Facts on an artifact that is there.

    Raises:
        CheckpointError: it holds no world model, or a damaged one.
    """
    if models := models_by_task(folder):
        return replace(read_model_facts(next(iter(models.values()))), tasks=tuple(models), model_per_task=True)
    kinds: dict[str, type[WorldModelConfig | SequenceModelConfig]]
    kinds = {"model": WorldModelConfig, "sequence_model": SequenceModelConfig}
    for name, config_type in kinds.items():
        if (folder / f"{name}.json").is_file():
            with reading(folder / f"{name}.json", CheckpointError):
                return ModelFacts.of(read_config(folder, name, config_type), read_table(folder).names)
    found = ", ".join(sorted(path.name for path in folder.iterdir()))
    raise CheckpointError(
        f"{folder} holds no world model: expected model.json or sequence_model.json, found {found or 'nothing'}"
    )


def models_by_task(artifact: Path) -> dict[str, Path]:
    """The folder of each task's model, of an artifact that holds several; empty where it holds one."""
    path = artifact / MODELS
    if not path.is_file():
        return {}
    return {task: artifact / inner for task, inner in read_made(path, dict[str, str]).items()}


def held_out_share(model: Path) -> float | None:
    """Return the share of each task's episodes that training held out (chosen by `TaskRows.held_out`); None if the
    model has no manifest that states it, for example if it was imported."""
    folder = next((one for one in (model, *model.parents[:2]) if (one / MANIFEST).is_file()), None)
    manifest = None if folder is None else read_manifest(folder)
    return None if manifest is None else manifest.config.get("held_out")
