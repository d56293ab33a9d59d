"""A job of the stage fqe: policies that are estimated side by side in processes, a file for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ...datasets.store import TaskStore
from ...pipeline.artifact import write_json
from ...pipeline.config.schema import build
from ...pipeline.jobs.job import JobContext
from ...pipeline.jobs.pool import run_all
from ..policy.policy import load_policy
from .config import FqeConfig
from .estimates import ValueEstimate
from .fitted_q import Frames, estimate_values

ACTED_ON = 4096
"""Frames that a policy acts on at once."""


@dataclass(frozen=True)
class _Estimation:
    """One policy."""

    member: Mapping[str, Any]
    policy: Path
    store: Path
    config: FqeConfig

    def __str__(self) -> str:
        one = self.member
        return f"fitted Q evaluation of {one['algorithm']} on {one['task']}, seed {one['seed']}"


def estimate_policies(payload: Mapping[str, Any], context: JobContext) -> None:
    """Estimate the members. Those that an interrupted attempt has finished are kept.

    Args:
        payload: members (file, algorithm, task, seed, imagined), policies (folders by file), config (an FqeConfig's
            dict).
    """
    config: FqeConfig = build(FqeConfig, dict(payload["config"]), "fqe")
    store, members = context.inputs["store"], payload["members"]
    remaining = [
        _Estimation(one, Path(payload["policies"][one["file"]]), store, config)
        for one in members
        if not (context.folder / one["file"]).exists()
    ]
    with context.progress("fqe", total=len(members), completed=len(members) - len(remaining)) as progress:
        for job, one in run_all(_estimate, remaining, workers=context.workers, kept="finished estimates"):
            write_json(context.folder / job.member["file"], asdict(one))
            progress.advance(1)
            progress.note(f"{one.algorithm} {one.task}: {one.value:.4g}")


def _estimate(job: _Estimation) -> ValueEstimate:
    """Fit the critics of one policy. Runs in a worker process."""
    one, frames = job.member, _frames(job.store, job.member["task"], job.config.frames_per_task)
    policy = load_policy(job.policy)
    with torch.inference_mode():
        acted = torch.cat([policy.act(observation) for observation in frames.observation_FO.split(ACTED_ON)])
    values = estimate_values(frames, acted.clone(), job.config).numpy()
    data = float(frames.return_F[frames.begin_E].mean())
    return ValueEstimate.of_critics(one["algorithm"], one["task"], one["seed"], values, data, one["imagined"])


@lru_cache(maxsize=1)
def _frames(store: Path, task: str, limit: int) -> Frames:
    """The data of the latest task in this process."""
    return Frames.read(TaskStore.open(store), task, limit)
