"""A job of the stage bpo_online: a model and a policy for one task, learned together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...datasets.schema import TaskSpec
from ...pipeline.artifact import write_json
from ...pipeline.config.schema import build
from ...pipeline.jobs.job import JobContext
from ..policy.policy_index import policy_entry
from ..training.loggers import logging_rows
from .config import FINISHED_FILE, BpoOnlineConfig
from .online import OnlineLoop
from .policy import StatePolicy


def learn_online(payload: Mapping[str, Any], context: JobContext) -> None:
    """Learn, and write the policy and FINISHED_FILE with its index entry and its curve.

    Args:
        payload: task (a TaskSpec's dict), seed, config (a BpoOnlineConfig's dict).
    """
    config: BpoOnlineConfig = build(BpoOnlineConfig, dict(payload["config"]), "bpo_online")
    torch.set_num_threads(context.threads)
    spec, seed = TaskSpec.from_dict(payload["task"]), payload["seed"]
    algorithm = f"bpo_online_{config.model.kind}"
    loop = OnlineLoop(spec, config.model, config.online, config.seed + seed)
    curves: list[dict[str, Any]] = []
    with (
        context.progress(f"{algorithm} {spec.name}, seed {seed}", total=loop.total_steps) as progress,
        logging_rows(config.loggers, context, config) as log,
    ):
        for row in loop.run():
            curves.append(
                {"iteration": row.pop("steps"), "algorithm": algorithm, "task": spec.name, "seed": seed, **row}
            )
            log(curves[-1:])
            progress.advance(spec.episode_length)
    trained_by = {"algorithm": algorithm, "seed": seed}
    entry = policy_entry(algorithm, spec, seed, imagined_return=loop.imagined_return())
    policy = StatePolicy.from_member(loop.policy, 0, spec, config.online.bpo.units, trained_by)
    policy.save(context.folder / entry["path"])
    write_json(context.folder / FINISHED_FILE, {"policies": [entry], "curves": curves})
