"""The stage finetune."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datasets.facts import read_store_facts
from ...datasets.tables import check_can_join, check_replayed, check_unknown
from ...datasets.tasks import expand_names
from ...pipeline.accelerator import check_gpu
from ...pipeline.artifact import MANIFEST, link
from ...pipeline.errors import StageError
from ...pipeline.jobs.fanout import FolderJob, fan_out
from ...pipeline.reading import read_csv, read_made
from ...pipeline.stage import Context, Input, Stage
from ...pipeline.wording import counted
from ..training.config import TRAINING_NOT_HASHED, check_loggers_installed
from ..world_model.config import WorldModelConfig
from ..world_model.facts import MODELS, ModelFacts, read_model_facts
from ..world_model.reward_range import beyond_bins
from .config import ADDED, FORGETTING, FinetuneConfig

if TYPE_CHECKING:
    from ...datasets.schema import TaskSpec


class Finetune(Stage):
    """Add new tasks to a pretrained world model.

    The result is one model of old and new tasks or, with `per_task`, one model per new task in `models/`.
    """

    Config = FinetuneConfig
    inputs = {
        "world_model": Input("world_model", facts=read_model_facts),
        "store": Input("store", facts=read_store_facts),
        "replay": Input("store", optional=True, outside=True),
    }
    output_kind = "world_model"
    not_hashed = (
        *TRAINING_NOT_HASHED,
        "fanout",
        "tasks",  # a check only: all tasks of the store are added
    )
    config: FinetuneConfig

    def check(self) -> None:
        if self.config.per_task:
            self.config.fanout.check_gpus(self.config.trainer.accelerator, "finetune.trainer.accelerator")

    def check_machine(self) -> None:
        trainer, key = self.config.trainer, "finetune.trainer.accelerator"
        if self.config.per_task:
            self.config.fanout.check_machine(trainer.accelerator, key)
        else:
            check_gpu(trainer.accelerator, key, trainer.devices)
        check_loggers_installed(self.config, "finetune")

    def check_input(self, name: str, folder: Path, facts: Any) -> None:
        if name != "world_model" or facts is None:
            return
        facts.check_single("finetune", folder)
        facts.check_predicts("latents", "finetune", folder)
        facts.check_horizon(self.config.horizon, "finetune.horizon", folder)
        if facts.tasks is not None:
            check_unknown(facts.tasks, expand_names(self.config.tasks), f"the world model in {folder}")

    def check_inputs(self, inputs: Mapping[str, Sequence[Any]]) -> None:
        (model,), (data,) = inputs["world_model"], inputs["store"]
        if model is not None and model.tasks is not None and data is not None:
            check_unknown(model.tasks, data.tasks, "the world model")

    def promise(self, inputs: Mapping[str, Sequence[Any]]) -> ModelFacts | None:
        model: ModelFacts | None
        (model,), (data,) = inputs["world_model"], inputs["store"]
        if model is None:
            return None
        old = () if self.config.per_task else model.tasks
        tasks = None if old is None or data is None else (*old, *data.tasks)
        return dataclasses.replace(model, tasks=tasks, model_per_task=self.config.per_task)

    def run(self, context: Context) -> str:
        from ...datasets.store import TaskStore
        from .job import finetune, finetune_task

        config = self.config
        store = TaskStore.open(context.input("store"))
        new = list(store.table)
        model = self._check(new, context)
        values = model.complete().num_q > 0
        if (said := beyond_bins(store.tasks, model.bin_limit, "pretrain.model.bin_limit", values=values)) is not None:
            context.log.warning("finetune: %s, and pretrain again", said)
        inputs = {name: str(folders[0]) for name, folders in context.inputs.items() if folders}
        if not config.per_task:
            return finetune(config, [task.name for task in new], inputs, context)
        settings = {**dataclasses.asdict(config), "tasks": [], "fanout": {}}
        not_hashed = [f"config.{name}" for name in self.not_hashed]
        jobs = [FolderJob(task.slug, {"config": settings, "task": task.name}, not_hashed) for task in new]
        results = fan_out(jobs, finetune_task, context, config.fanout, accelerator=config.trainer.accelerator)
        return _gather(new, results, context)

    def _check(self, new: Sequence[TaskSpec], context: Context) -> WorldModelConfig:
        """Refuse what cannot be trained, before any of it is; return what the model is."""
        from ...datasets.schema import read_table
        from ...datasets.store import TaskStore
        from ...pipeline.saved_config import read_config

        folder = context.input("world_model")
        model = read_config(folder, "model", WorldModelConfig)
        table = read_table(folder)
        ModelFacts.of(model, table.names).check_horizon(self.config.horizon, "finetune.horizon", folder)
        check_unknown(table.names, [task.name for task in new], f"the world model in {folder}")
        check_can_join(table, new, model.complete().task_dim, folder)
        if (replayed := context.optional_input("replay")) is not None:
            check_replayed(table, TaskStore.open(replayed).table, folder, replayed)
        elif self.config.replay:
            raise StageError(
                f"finetune.replay is {self.config.replay}, but the old tasks' data is missing: set inputs.replay to "
                "the store that the model was trained on (RUN/pack), or finetune.replay=0"
            )
        return model


@dataclass(frozen=True)
class _Added:
    """What of added.json is gathered."""

    tasks: dict[str, dict[str, Any]]


def _gather(new: Sequence[TaskSpec], results: dict[str, Path], context: Context) -> str:
    """The models of all jobs as one artifact, with their metrics side by side."""
    import pandas as pd

    folders = {task.name: Path("models") / task.slug for task in new}
    added: dict[str, Any] = {}
    validation, forgetting = [], []
    for task in new:
        folder = context.folder / folders[task.name]
        link(results[task.slug], folder)
        (folder / MANIFEST).unlink()
        added |= read_made(folder / ADDED, _Added).tasks
        own = read_csv(folder / "validation.csv", ["task"])
        validation.append(own[own["task"] == task.name])
        forgetting.append(read_csv(folder / FORGETTING).assign(model=task.name))
    (context.folder / ADDED).write_text(json.dumps({"tasks": added}, indent=1))
    pd.concat(validation).to_csv(context.folder / "validation.csv", index=False)
    pd.concat(forgetting).to_csv(context.folder / FORGETTING, index=False)
    (context.folder / MODELS).write_text(json.dumps({task: path.as_posix() for task, path in folders.items()}))
    return f"{counted(len(new), 'task')}, one model each"
