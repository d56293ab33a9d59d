"""A job of the stage baselines: agents of Stable-Baselines3, trained side by side in processes of one thread."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from ...datasets.schema import TaskSpec
from ...pipeline.config.schema import build
from ...pipeline.jobs.job import JobContext
from ...pipeline.jobs.pool import run_all
from ...pipeline.stage import ProgressTask
from ..policy.policy_index import policy_entry
from ..powr.curves import failure_warnings
from .config import BaselinesConfig
from .online import CHECKPOINT, OnlineAgent, OnlineRun


def learn_policies(payload: Mapping[str, Any], context: JobContext) -> None:
    """Train the members, each into the folder of its policy. Those that an interrupted attempt has finished are kept;
    others continue from their checkpoints bit for bit.

    Args:
        payload: members (task as a TaskSpec's dict, algorithm, seed, settings, statistics), config (a
            BaselinesConfig's dict).
    """
    config: BaselinesConfig = build(BaselinesConfig, dict(payload["config"]), "baselines")
    runs = []
    for member in payload["members"]:
        spec = TaskSpec.from_dict(member["task"])
        folder = context.folder / policy_entry(member["algorithm"], spec, member["seed"])["path"]
        statistics = member["statistics"]
        if statistics is not None:
            statistics = (*(np.array(one, np.float32) for one in statistics[:2]), statistics[2])
        runs.append(
            OnlineRun(config, spec, member["algorithm"], member["seed"], member["settings"], statistics, folder)
        )
    waiting = [run for run in runs if not (run.folder / "policy.json").is_file()]
    done, total = len(runs) - len(waiting), len(runs) * config.steps
    with context.progress("baselines", total=total, completed=done * config.steps) as progress:
        # Other processes cannot tell how far they are.
        alone = min(context.workers, len(waiting)) <= 1
        learn = partial(_learn, progress=progress) if alone else _learn
        for run, messages in run_all(learn, waiting, workers=1 if alone else context.workers):
            for message in messages:
                context.log.warning("%s: %s", run, message)
            if not alone:
                progress.advance(config.steps)
                progress.note(f"{run}: done")
    for run in runs:
        (run.folder / CHECKPOINT).unlink(missing_ok=True)


def _learn(run: OnlineRun, progress: ProgressTask | None = None) -> list[str]:
    """Train one agent; write its policy and its curve. Returns warnings. Runs in a worker process, or tells `progress`
    of every step."""
    torch.set_num_threads(1)
    agent = OnlineAgent(run)
    agent.learn(progress)
    agent.write()
    return failure_warnings(agent.failed)
