"""A job of the stage powr: policies planned one after another, each in its own folder with a record of its fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...datasets.store import TaskRows, TaskStore
from ...pipeline.accelerator import device_of
from ...pipeline.artifact import write_json
from ...pipeline.config.schema import build
from ...pipeline.errors import OrreryError
from ...pipeline.jobs.job import JobContext
from ...pipeline.seeding import derive_seed
from ..policy.policy_index import policy_entry
from ..world_model.networks import WorldModel
from ..world_model.task_encoder import TaskEncoder
from .actions import CandidateActions
from .config import ALGORITHM, FIT_FILE, PowrConfig
from .features import Features, index_features, is_one_hot, latent_features, standardised_features
from .kernels import StateKernel, median_distance
from .offline import make_actions, plan, read_rows
from .policy import KernelPolicy

FEATURE_ROWS = 20_000
"""Observations that scaling and principal components are estimated from."""


def plan_policies(payload: Mapping[str, Any], context: JobContext) -> None:
    """Plan the members' policies. Those that an interrupted attempt has finished are kept.

    Args:
        payload: members (task, seed, data), config (a PowrConfig's dict).
    """
    config: PowrConfig = build(PowrConfig, dict(payload["config"]), "powr")
    torch.set_num_threads(context.threads)
    store = TaskStore.open(context.inputs["store"])
    model = WorldModel.load(context.inputs["world_model"]) if config.states == "latent" else None
    with context.progress("powr", total=len(payload["members"])) as progress:
        for member in payload["members"]:
            name, seed = member["task"], member["seed"]
            folder = context.folder / policy_entry(ALGORITHM, store.table.spec_of(name), seed)["path"]
            if not (folder / FIT_FILE).is_file():
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    fit = _plan(config, store.rows_of(name), store.table.observation_dim, model, seed, folder)
                except OrreryError as error:
                    raise type(error)(f"{name}: {error}") from error
                write_json(folder / FIT_FILE, fit)
            progress.advance(1)
            progress.note(f"{name}, seed {seed}")


def _plan(
    config: PowrConfig, task: TaskRows, observation_width: int, model: WorldModel | None, seed: int, folder: Path
) -> dict[str, Any]:
    """Plan one policy and save it; returns the record of its fit.

    Args:
        observation_width: columns of the store's rows that hold observations.
    """
    name = task.spec.name
    own = derive_seed(config.seed, "powr", name, seed) % 2**31
    assert task.spec.discount is not None
    features, repeats = _features(config, task, model)
    data = read_rows(task, features, observation_width, config.offline, own)
    kind = "delta" if repeats else config.kernel
    scaled = kind not in ("delta", "linear")
    scale = config.scale * median_distance(data.train.state_NO, own) if scaled else 1.0
    kernel = StateKernel.of(kind, scale)
    actions = make_actions(data, task.spec.action_kind, task.spec.action_dim, config.offline, own)
    made = plan(data, kernel, actions, task.spec.discount, config.offline, own, device_of(config.accelerator))
    candidates = actions.candidate_UA if isinstance(actions, CandidateActions) else None
    policy = KernelPolicy.of(
        task.spec,
        features,
        kernel,
        made.model.centres.state_MO,
        made.model.choice_weights(made.improvement.weight_M),
        {"algorithm": ALGORITHM, "seed": seed},
        candidate_UA=candidates,
        action=config.action if candidates is not None else "mode",
        behaviour=made.behaviour,
        penalty=made.penalty,
    )
    policy.save(folder)
    return {**made.facts, "kernel": kind, "scale": scale}


def _features(config: PowrConfig, task: TaskRows, model: WorldModel | None) -> tuple[Features, bool]:
    """Return the map from observations to states, and whether the states are indices."""
    chosen = task.sample_transitions(FEATURE_ROWS, config.offline.held_out)
    observation = task.rows[chosen, : task.spec.observation_dim]
    if model is not None:
        return latent_features(TaskEncoder.of(model, task.spec.name), observation, config.components), False
    if is_one_hot(observation):
        return index_features(task.spec.observation_dim), True
    return standardised_features(observation), False
