"""A job of extraction: some members, trained as one program on whatever machine the job runs on, and their policies.

Which members share a job is decided in packing.py and changes a member's result by float rounding alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...pipeline import termination
from ...pipeline.accelerator import device_of
from ...pipeline.artifact import replacing
from ...pipeline.config.schema import build
from ...pipeline.jobs.job import JobContext
from ..policy.policy_index import policy_entry
from ..world_model.networks import WorldModel
from ..world_model.start_frames import frame_source
from .config import ExtractConfig
from .first_order import FirstOrderExtraction, Member
from .groups import MemberGroups
from .policy import LatentPolicy
from .starts import encode_starts

IMAGINED_EPISODES = 16
"""Episodes, from first frames of the data, over which the imagined return of a policy is averaged."""

ENTRIES = "entries.json"
"""What policies.json says of each policy of the job."""
CURVES = "curves.json"
"""Logged numbers, a row per iteration and member."""
CHECKPOINT = "checkpoint.pt"


def payload_of(config: ExtractConfig, members: Sequence[Member], model: Path) -> dict[str, Any]:
    """The payload of `train_members`; without what decides where and how fast it is done.

    Args:
        model: folder of the members' model below that of the input.
    """
    settings = dataclasses.asdict(config)
    del settings["fanout"]
    return {"config": settings, "members": [dataclasses.asdict(one) for one in members], "model": model.as_posix()}


def train_members(payload: Mapping[str, Any], context: JobContext) -> None:
    """Train the members and write their policies, ENTRIES and CURVES; continues from CHECKPOINT."""
    config: ExtractConfig = build(ExtractConfig, payload["config"], "extract")
    members = [Member(**values) for values in payload["members"]]
    torch.set_num_threads(context.threads)
    device = device_of(config.accelerator)
    inputs = {**context.inputs, "world_model": context.inputs["world_model"] / payload["model"]}
    model = WorldModel.load(inputs["world_model"]).to(device)
    ids = sorted({model.table.id_of(member.task) for member in members})
    specs = [model.table[k] for k in ids]
    frames_of = frame_source(inputs, specs, config.starts_per_task, IMAGINED_EPISODES, config.seed)
    with context.progress("encode start states", total=len(ids)) as progress:
        starts = encode_starts(model, ids, frames_of, lambda: progress.advance(1))

    def program(part: list[Member]) -> FirstOrderExtraction:
        return FirstOrderExtraction(model, starts, part, config.first_order, config.iterations, config.seed)

    checkpoint = context.folder / CHECKPOINT
    saved = torch.load(checkpoint, map_location=device, weights_only=True) if checkpoint.is_file() else None
    # As many groups as the interrupted attempt had, which may have run on another kind of device.
    number = config.groups_on(device.type) if saved is None else len(saved["groups"])
    groups = MemberGroups(members, number, program)
    curves = _train(groups, saved, config, context)
    entries = _write_policies(groups, model, config, context)
    (context.folder / ENTRIES).write_text(json.dumps(entries))
    (context.folder / CURVES).write_text(json.dumps(curves))
    (context.folder / CHECKPOINT).unlink()


def _train(
    groups: MemberGroups, saved: dict[str, Any] | None, config: ExtractConfig, context: JobContext
) -> list[dict[str, Any]]:
    """All iterations, from the checkpoint `saved` on; returns the logged rows."""
    checkpoint = context.folder / CHECKPOINT
    first, curves = 0, []
    if saved is not None:
        groups.load_state_dict(saved["groups"])
        first, curves = saved["iteration"], saved["curves"]
    with (
        termination.deferred(),
        context.progress("extract", total=config.iterations, completed=first) as progress,
        groups.running() as update,
    ):
        for iteration in range(first, config.iterations):
            metrics = update(iteration)
            done = iteration + 1
            progress.advance(1)
            if done % config.log_every == 0 or done == config.iterations:
                for group, values in zip(groups.groups, metrics, strict=True):
                    group.check_finite(values, iteration)
                    curves += _rows(group, values, done)
                if "imagined_reward" in metrics[0]:
                    progress.note(f"imagined reward {metrics[0]['imagined_reward'].mean():.3f} per decision")
            stopping = termination.requested()
            if done % config.checkpoint_every == 0 or done == config.iterations or stopping:
                state = {"groups": groups.state_dict(), "iteration": done, "curves": curves}
                with replacing(checkpoint) as temporary:
                    torch.save(state, temporary)
            if stopping:
                break
    return curves


def _rows(extraction: FirstOrderExtraction, metrics: dict[str, Any], iteration: int) -> list[dict[str, Any]]:
    values = {name: tensor.tolist() for name, tensor in metrics.items()}
    return [
        {
            "iteration": iteration,
            "algorithm": member.algorithm,
            "task": member.task,
            "seed": member.seed,
            **{name: column[m] for name, column in values.items() if m < len(column)},
        }
        for m, member in enumerate(extraction.members)
    ]


def _write_policies(
    groups: MemberGroups, model: WorldModel, config: ExtractConfig, context: JobContext
) -> list[dict[str, Any]]:
    entries = []
    with context.progress("imagine whole episodes", total=len(groups.groups)) as progress:
        for group, imagined_returns in groups.imagined_returns():
            progress.advance(1)
            noise = group.gradient_noise().tolist()
            for m, (member, imagined) in enumerate(zip(group.members, imagined_returns.tolist(), strict=True)):
                task = model.table.spec_of(member.task)
                trained_by: dict[str, Any] = {
                    "algorithm": member.algorithm,
                    "seed": member.seed,
                    "anchor": member.anchor,
                    "uncertainty": member.uncertainty,
                }
                networks = config.first_order.networks
                policy = LatentPolicy.from_member(model, group.actor, m, task, networks, trained_by)
                entry = policy_entry(
                    **trained_by,
                    task=task,
                    imagined_return=imagined,
                    gradient_noise=noise[m] if member.imagines else None,
                )
                policy.save(context.folder / entry["path"])
                entries.append(entry)
    return entries
