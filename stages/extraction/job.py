"""An extraction job: some policies, trained as one program on the machine of the job.

packing.py assigns policies to jobs; the assignment changes results by float rounding only.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...datasets.rollout import kept_environments, play_episodes, policy_act
from ...datasets.store import TaskStore
from ...datasets.windows import Split
from ...pipeline import termination
from ...pipeline.accelerator import autocast, device_of
from ...pipeline.artifact import replacing, write_json
from ...pipeline.config.schema import build
from ...pipeline.jobs.job import JobContext
from ...pipeline.memory import reuse_freed_memory
from ...pipeline.seeding import derive_seed
from ..policy.policy_index import SHARES_FILE, policy_entry
from ..training.loggers import logging_rows
from ..world_model.facts import held_out_share
from ..world_model.networks import WorldModel
from ..world_model.start_frames import frame_source
from .config import ALGORITHMS, ExtractConfig
from .first_order import FirstOrderExtraction
from .groups import MemberGroups
from .policy import LatentPolicy
from .program import PolicySpec, Program
from .starts import encode_starts
from .svg import SvgExtraction
from .transitions import LatentTransitions, encode_transitions

IMAGINED_EPISODES = 16
"""Episodes, from first frames of the data, over which the imagined return of a policy is averaged."""

ENTRIES = "entries.json"
"""Index entries of the policies of the job."""
CURVES = "curves.json"
"""Logged metrics, one row per iteration and policy."""
CHECKPOINT = "checkpoint.pt"


def payload_of(config: ExtractConfig, model: Path) -> dict[str, Any]:
    """The payload of `train_members`, without the members; and without the settings that say which these are.

    Args:
        model: folder of the members' model below that of the input.
    """
    of_job = dataclasses.replace(
        config, algorithms=list(ALGORITHMS), tasks=[], seeds=1, anchor=[], task_anchor={}, uncertainty=[0.0]
    )
    return {"config": {**dataclasses.asdict(of_job), "fanout": {}}, "model": model.as_posix()}


def train_members(payload: Mapping[str, Any], context: JobContext) -> None:
    """Train the members and write their policies, ENTRIES and CURVES; continues from CHECKPOINT."""
    config: ExtractConfig = build(ExtractConfig, payload["config"], "extract")
    members = [PolicySpec(**values) for values in payload["members"]]
    torch.set_num_threads(context.threads)
    reuse_freed_memory()
    device = device_of(config.accelerator)
    inputs = {**context.inputs, "world_model": context.inputs["world_model"] / payload["model"]}
    model = WorldModel.load(inputs["world_model"]).to(device)
    ids = sorted({model.table.id_of(member.task) for member in members})
    specs = [model.table[k] for k in ids]
    frames_of = frame_source(inputs, specs, config.starts_per_task, IMAGINED_EPISODES, config.seed)
    with context.progress("encode start states", total=len(ids)) as progress:
        starts = encode_starts(model, ids, frames_of, lambda: progress.advance(1))

    def encoded(split: Split) -> LatentTransitions:
        held_out = held_out_share(inputs["world_model"]) or 0.0
        store, frames = TaskStore.open(inputs["store"]), config.svg.frames_per_task
        with context.progress(f"encode transitions, {split}", total=len(ids)) as progress:
            advance = lambda: progress.advance(1)  # noqa: E731
            return encode_transitions(model, store, ids, frames, config.seed, held_out, advance, split=split)

    from_data = any(member.objective == "svg" for member in members)
    transitions = encoded("train") if from_data else None
    unseen = encoded("held_out") if from_data and config.svg.weights == "trust" else None

    def programs(part: list[PolicySpec]) -> list[Program]:
        # One per algorithm, so that each one's CPU time is known.
        by_algorithm = {name: [member for member in part if member.objective == name] for name in ALGORITHMS}
        return [program(name, own) for name, own in by_algorithm.items() if own]

    def program(algorithm: str, own: list[PolicySpec]) -> Program:
        if algorithm != "svg":
            return FirstOrderExtraction(model, starts, own, config.first_order, config.iterations, config.seed)
        assert transitions is not None
        return SvgExtraction(model, starts, transitions, own, config.svg, config.iterations, config.seed, unseen)

    checkpoint = context.folder / CHECKPOINT
    saved = torch.load(checkpoint, map_location=device, weights_only=True) if checkpoint.is_file() else None
    # As many groups as the interrupted attempt had, which may have run on another kind of device.
    number = config.groups_on(device.type) if saved is None else len(saved["groups"])
    groups = MemberGroups(members, number, programs, partial(autocast, config.precision, device))
    curves = _train(groups, saved, config, context)
    entries = _write_policies(groups, model, context)
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
        logging_rows(config.loggers, context, config) as log,
        context.progress("extract", total=config.iterations, completed=first) as progress,
        groups.running() as update,
    ):
        for iteration in range(first, config.iterations):
            metrics = update(iteration)
            done = iteration + 1
            progress.advance(1)
            last, every = done == config.iterations, config.evaluate_every
            evaluating = every > 0 and (done % every == 0 or last)
            if done % config.log_every == 0 or last or evaluating:
                rows = []
                for program, values in zip(groups.programs, metrics, strict=True):
                    program.check_finite(values, iteration)
                    own = _rows(program, values, done)
                    rows += _evaluated(program, own, config) if evaluating else own
                log(rows)
                curves += rows
                if evaluating and (found := [row["evaluation_return"] for row in rows if "evaluation_return" in row]):
                    progress.note(f"return {sum(found) / len(found):.4g} in the environment")
                elif "imagined_reward" in metrics[0]:
                    progress.note(f"imagined reward {metrics[0]['imagined_reward'].mean():.3f} per step")
            stopping = termination.requested()
            if done % config.checkpoint_every == 0 or done == config.iterations or stopping:
                state = {"groups": groups.state_dict(), "iteration": done, "curves": curves}
                with replacing(checkpoint) as temporary:
                    torch.save(state, temporary)
            if stopping:
                break
    return curves


def _rows(program: Program, metrics: dict[str, Any], iteration: int) -> list[dict[str, Any]]:
    values = {name: tensor.tolist() for name, tensor in metrics.items()}
    return [
        {
            "iteration": iteration,
            "algorithm": member.algorithm,
            "task": member.task,
            "seed": member.seed,
            **{name: column[m] for name, column in values.items() if m < len(column)},
        }
        for m, member in enumerate(program.members)
    ]


def _evaluated(program: Program, rows: list[dict[str, Any]], config: ExtractConfig) -> list[dict[str, Any]]:
    """The rows of a program's members with `evaluation_return`, the mean return of some episodes of the deterministic
    policy; without it where no environment is known or no episode completes."""
    found = []
    with torch.random.fork_rng(devices=[]):  # making a policy draws weights, which training must not notice
        for m, (member, row) in enumerate(zip(program.members, rows, strict=True)):
            spec = program.model.table.spec_of(member.task)
            returns = []
            if spec.environment:
                policy = LatentPolicy.from_member(program.model, program.policy, m, spec, program.networks, {})
                seeds = [
                    derive_seed("evaluate_every", config.seed, member.task, episode)
                    for episode in range(config.evaluation_episodes)
                ]
                results = [
                    one for _, one in play_episodes(spec, policy_act(policy), seeds, pool=kept_environments(spec))
                ]
                returns = [one.return_ for one in results if one.error is None]
            found.append({**row, "evaluation_return": sum(returns) / len(returns)} if returns else row)
    return found


def _write_policies(groups: MemberGroups, model: WorldModel, context: JobContext) -> list[dict[str, Any]]:
    entries, shares = [], {}
    with context.progress("imagine whole episodes", total=len(groups.programs)) as progress:
        for program, imagined in groups.imagined_returns():
            progress.advance(1)
            noise = program.gradient_noise().tolist()
            returns, values = (column.tolist() for column in imagined)
            for m, member in enumerate(program.members):
                task = model.table.spec_of(member.task)
                trained_by: dict[str, Any] = {
                    "algorithm": member.algorithm,
                    "seed": member.seed,
                    "anchor": member.anchor,
                    "uncertainty": member.uncertainty,
                }
                policy = LatentPolicy.from_member(model, program.policy, m, task, program.networks, trained_by)
                entry = policy_entry(
                    **trained_by,
                    task=task,
                    imagined_return=returns[m],
                    imagined_value=values[m],
                    gradient_noise=noise[m] if m < len(noise) else None,
                )
                policy.save(context.folder / entry["path"])
                entries.append(entry)
                shares[entry["path"]] = program.cpu_seconds / len(program.members)
    if total := sum(shares.values()):  # nothing is known of updates that an earlier attempt made
        (context.folder / SHARES_FILE).parent.mkdir(exist_ok=True)
        write_json(context.folder / SHARES_FILE, {path: seconds / total for path, seconds in shares.items()})
    return entries
