"""Finetuning itself: a pretrained model and one or more new tasks to a model of all of them, with what it forgot.

The folder it works in may hold what an interrupted attempt left: everything before the training is a function of the
inputs and is done again, and the training continues from its checkpoint.

Dimension letters: K tasks, J old tasks, H diagnosed horizons.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tensordict import TensorDict

from ...datasets.datamodule import WindowSettings
from ...datasets.joined import JoinedWindowData, JoinedWindows, StoreShare
from ...datasets.schema import TaskTable
from ...datasets.store import TaskStore
from ...datasets.windows import WindowSampler
from ...pipeline.config.schema import build
from ...pipeline.jobs.job import JobContext
from ...pipeline.wording import counted
from ..training.fit import TrainingContext, fit, logged_metrics
from ..world_model.balance import reward_entropy, reward_weights, scale_observations
from ..world_model.networks import WorldModel
from ..world_model.open_loop import OpenLoopError, reward_stds, validation_length
from ..world_model.start_frames import (
    SAVED_FRAMES,
    SAVED_INITIAL,
    draw_frames,
    has_frames,
    load_frames,
    save_frames,
    saved_behaviours,
)
from .config import ADDED, FORGETTING, FinetuneConfig
from .expansion import expand_model
from .module import Finetuning, begin_rows, learning_masks

NEAREST_WINDOWS = 512
"""Of a new task's data, on which it is tried as each old task."""
_BATCH = 128


def finetune_task(payload: Mapping[str, Any], context: JobContext) -> None:
    """The job of one new task: `payload` has its name and the settings."""
    config: FinetuneConfig = build(FinetuneConfig, payload["config"], "finetune")
    inputs = {name: str(folder) for name, folder in context.inputs.items()}
    finetune(config, [payload["task"]], inputs, context)


def finetune(config: FinetuneConfig, names: Sequence[str], inputs: Mapping[str, str], place: TrainingContext) -> str:
    """Add the tasks `names` of the store to the world model and train; write the model and its metrics.

    Args:
        inputs: folders of world_model and store, and of replay where it is given.
    Returns:
        one line: what came of it.
    """
    torch.manual_seed(config.seed)
    torch.set_num_threads(place.threads)
    old = WorldModel.load(inputs["world_model"])
    store = TaskStore.open(inputs["store"])
    specs = [store.table.spec_of(name) for name in names]
    model, fresh = expand_model(old, specs)
    for k, name in enumerate(names, len(old.table)):
        scale_observations(model, k, store.rows_of(name), config.held_out)
    data = _data(config, names, inputs, model)
    initial = [_windows(config, store, name, model) for name in names]
    said = begin_rows(model, len(old.table), config.initial, config.scaling, initial)
    before = open_loop_errors(model, data, config.validation_batches)
    masks = learning_masks(model, fresh, config.train)
    module = Finetuning(
        model,
        masks,
        config.loss,
        config.optimizer,
        _reward_weights(config, inputs, model),
        total_steps=config.steps,
        log_every=config.trainer.log_every,
        seed=config.seed,
        compiled=config.trainer.compile,
    )
    fit(module, data, config, "finetune", place)
    module.cpu()
    after = open_loop_errors(model, data, config.validation_batches)
    _write(place.folder, model, before, after, len(old.table))
    _save_frames(place.folder, old.table, store, names, inputs, config.held_out)
    record = {"tasks": dict(zip(names, said, strict=True)), "train": config.train, "parameters": _counted(masks, model)}
    (place.folder / ADDED).write_text(json.dumps(record, indent=1))
    return _summary(names, said, before, after, len(old.table), config.steps)


def _data(
    config: FinetuneConfig, names: Sequence[str], inputs: Mapping[str, str], model: WorldModel
) -> JoinedWindowData:
    replayed = config.replayed_windows if "replay" in inputs else 0
    shares = [StoreShare(Path(inputs["replay"]), replayed)] if "replay" in inputs else []
    shares.append(StoreShare(Path(inputs["store"]), config.batch_size - replayed, tuple(names)))
    settings = WindowSettings(
        horizon=config.horizon,
        batch_size=config.batch_size,
        seed=config.seed,
        held_out=config.held_out,
        validation_length=validation_length(config.horizon, model.config.longest_prediction()),
        validation_batches=config.validation_batches,
        stage="finetune",
        load_up_to_gb=config.load_up_to_gb,
    )
    return JoinedWindowData(shares, model.table, settings)


def _windows(config: FinetuneConfig, store: TaskStore, name: str, model: WorldModel) -> list[TensorDict]:
    """Training windows of one new task, as the model takes them; fewer than NEAREST_WINDOWS where it has no more."""
    k = store.table.id_of(name)
    weights = {other: float(other == name) for other in store.table.names}
    lengths = store.tasks[k].lengths[~store.tasks[k].held_out(config.held_out)]
    count = int((lengths - config.horizon + 1).clip(min=0).sum())
    size = max(min(_BATCH, count - 1), 1)
    sampler = WindowSampler(
        store,
        length=config.horizon,
        batch_size=size,
        seed=config.seed,
        weights=weights,
        split="train",
        held_out=config.held_out,
        stage="finetune",
    )
    ids = torch.full((len(store.table),), model.table.id_of(name))
    joined = JoinedWindows([(sampler, ids)], model.table)
    return [joined.batch(step) for step in range(max(NEAREST_WINDOWS // size, 1))]


def _reward_weights(config: FinetuneConfig, inputs: Mapping[str, str], model: WorldModel) -> torch.Tensor:
    """[K]; 1 for a task whose data is not there."""
    entropy_K = torch.full((len(model.table),), torch.nan)
    for name in ("store", "replay"):
        if name in inputs:
            store = TaskStore.open(inputs[name])
            entropies = reward_entropy(store, model.bins_M, config.held_out)
            for task, entropy in zip(store.table.names, entropies, strict=True):
                if task in model.table.names:
                    entropy_K[model.table.id_of(task)] = entropy
    known = ~entropy_K.isnan()
    weight_K = torch.ones(len(model.table))
    weight_K[known] = reward_weights(entropy_K[known], config.reward_balance)
    return weight_K


def open_loop_errors(model: WorldModel, data: JoinedWindowData, batches: int) -> pd.DataFrame:
    """Open-loop prediction on the held-out windows of `data`: task, horizon, reward_r2, latent_mse; empty without any.

    The latent error is in units of the model's own latents: it compares models only where they share an encoder.
    """
    columns = ["task", "horizon", "reward_r2", "latent_mse"]
    if not data.has_held_out():
        return pd.DataFrame(columns=columns)
    training = model.training
    model.eval()
    windows = data.validation_windows()
    found: OpenLoopError | None = None
    for step in range(batches):
        batch = windows.batch(step)
        action = batch["action"]
        found = found or OpenLoopError(reward_stds(data, model.table).to(action.device), action.shape[1])
        found.add(model, batch)
    model.train(training)
    assert found is not None
    r2_KH, latent_KH = found.result().values()
    rows = [
        (name, horizon, float(r2_KH[k, h]), float(latent_KH[k, h]))
        for k, name in enumerate(model.table.names)
        for h, horizon in enumerate(found.horizons)
        if found.sums[k, h, 0] > 0
    ]
    return pd.DataFrame(rows, columns=columns)


def _write(folder: Path, model: WorldModel, before: pd.DataFrame, after: pd.DataFrame, old_tasks: int) -> None:
    model.save(folder)
    training, validation = logged_metrics(folder)
    training.to_csv(folder / "training.csv", index=False)
    validation.to_csv(folder / "validation.csv", index=False)
    both = before.merge(after, on=["task", "horizon"], suffixes=("_before", "_after"))
    both.insert(1, "new", ~both["task"].isin(model.table.names[:old_tasks]))
    both.to_csv(folder / FORGETTING, index=False)


def _save_frames(
    folder: Path, old: TaskTable, store: TaskStore, names: Sequence[str], inputs: Mapping[str, str], held_out: float
) -> None:
    """As pretraining does, so that policies can be extracted without the data: of new tasks, and of old ones where they
    are saved beside the model or their store is there."""
    sources = dict.fromkeys(names, store)
    if "replay" in inputs:
        replayed = TaskStore.open(inputs["replay"])
        sources |= dict.fromkeys(replayed.table.names, replayed)
    frames = {}
    if has_frames(model := Path(inputs["world_model"])):
        frames = load_frames(model, [task for task in old if task.name in saved_behaviours(model)])
    frames |= {
        name: draw_frames(own, name, SAVED_FRAMES, SAVED_INITIAL, seed=0, held_out=held_out)
        for name, own in sources.items()
    }
    count = min(len(one.observation_NO) for one in frames.values())
    save_frames(frames, folder, f"at least {count} frames of each task's training data, drawn at random")


def _counted(masks: Mapping[str, torch.Tensor | None], model: WorldModel) -> dict[str, int]:
    """Elements that learn, by parameter."""
    return {
        name: int(model.get_parameter(name).numel() if mask is None else mask.sum()) for name, mask in masks.items()
    }


def _summary(
    names: Sequence[str],
    said: Sequence[Mapping[str, Any]],
    before: pd.DataFrame,
    after: pd.DataFrame,
    old_tasks: int,
    steps: int,
) -> str:
    added = [
        f"{name} (from {one['nearest']})" if "nearest" in one else name for name, one in zip(names, said, strict=True)
    ]
    shown = ", ".join(added) if len(added) <= 3 else f"{len(added)} tasks"
    line = f"{shown} added to {counted(old_tasks, 'task')} in {steps} steps"
    pairs = before.merge(after, on=["task", "horizon"], suffixes=("_before", "_after"))
    for what, own in (("old", pairs[~pairs["task"].isin(names)]), ("new", pairs[pairs["task"].isin(names)])):
        own = own[own["horizon"] == own["horizon"].max()].dropna()
        if not own.empty:
            horizon = int(own["horizon"].iloc[0])
            change = f"{own['reward_r2_before'].median():.2f} -> {own['reward_r2_after'].median():.2f}"
            line += f"; {what} tasks' open-loop reward R2 at {horizon} steps {change}"
    return line
