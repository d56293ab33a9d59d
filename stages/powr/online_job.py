"""A job of the stage powr_online: runs side by side in processes of one thread, each with its curve and its policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...datasets.rollout import play_episodes
from ...datasets.schema import Episode, TaskSpec
from ...datasets.tasks import make_environment
from ...pipeline.config.schema import build
from ...pipeline.jobs.job import JobContext
from ...pipeline.jobs.pool import run_all
from ...pipeline.seeding import derive_seed
from .config import ONLINE_ALGORITHM, PowrOnlineConfig
from .curves import CURVES_FILE, CurveRow, completed_returns, failure_warnings, write_curves
from .features import index_features, raw_features
from .kernels import StateKernel
from .online import Epoch, OnlineLearner, completed, greedy_act, sampled_act
from .policy import KernelPolicy
from .stability import radius_warning


@dataclass(frozen=True)
class _Run:
    config: PowrOnlineConfig
    spec: TaskSpec
    seed: int
    folder: Path

    def __str__(self) -> str:
        return f"powr_online on {self.spec.name}, seed {self.seed}"


def learn_seeds(payload: Mapping[str, Any], context: JobContext) -> None:
    """Learn with each member's seed, in `seed_<n>/`. Seeds that an interrupted attempt has finished are kept.

    Args:
        payload: task (a TaskSpec's dict), members (seed), config (a PowrOnlineConfig's dict).
    """
    config: PowrOnlineConfig = build(PowrOnlineConfig, dict(payload["config"]), "powr_online")
    spec = TaskSpec.from_dict(payload["task"])
    seeds = [member["seed"] for member in payload["members"]]
    runs = [_Run(config, spec, seed, context.folder / f"seed_{seed}") for seed in seeds]
    waiting = [run for run in runs if not (run.folder / CURVES_FILE).is_file()]
    with context.progress("powr_online", total=len(runs), completed=len(runs) - len(waiting)) as progress:
        for run, messages in run_all(_learn, waiting, workers=context.workers):
            for message in messages:
                context.log.warning("%s: %s", run, message)
            progress.advance(1)


def _learn(run: _Run) -> list[str]:
    """Learn with one seed; write its curve and its policy. Returns warnings. Runs in a worker process."""
    torch.set_num_threads(1)
    config, spec = run.config, run.spec
    pool = [make_environment(spec)]
    discrete = type(pool[0].native.observation_space).__name__ == "Discrete"
    features = index_features(spec.observation_dim) if discrete else raw_features(spec.observation_dim)
    kernel = StateKernel.of(config.kernel, config.scale[0] if len(config.scale) == 1 else config.scale)
    learner = OnlineLearner(features, kernel, spec.action_dim, config.discount, config.planner, run.seed)

    def seeds(purpose: str, epoch: int, count: int) -> list[int]:
        parts = (config.seed, run.seed, epoch)
        return [derive_seed("powr_online", purpose, *parts, index) % 2**31 for index in range(count)]

    failed: list[str] = []

    def returns(act: Any, chosen: list[int]) -> list[float]:
        played = play_episodes(spec, act, chosen, pool=pool, lanes=len(chosen))
        return completed_returns((result for _, result in played), spec.name, failed)

    planned: list[Epoch] = []
    heard: list[Episode] = []

    def hear(decision: Episode) -> None:
        heard.append(decision)
        if len(heard) == config.replan_every:
            if learner.add(heard):
                planned.append(learner.improve())
            heard.clear()

    rows: list[CurveRow] = []
    trained: list[float] = []
    transitions, epoch, reported = 0, 0, 0
    while transitions < config.transitions:
        chosen = seeds("collect", epoch, config.episodes if epoch else config.warmup_episodes)
        listener = hear if config.replan_every else None
        played = play_episodes(spec, sampled_act(learner, chosen), chosen, record=True, pool=pool, heard=listener)
        results = [result for _, result in sorted(played, key=lambda one: one[0])]
        trained += completed_returns(results, spec.name, failed)
        episodes = completed(results)
        transitions += sum(map(len, episodes))
        epoch += 1
        learner.add(heard if config.replan_every else episodes)
        heard.clear()
        planned.append(learner.improve())
        if rows and transitions < min(rows[-1].transitions + config.evaluate_every, config.transitions):
            continue
        chosen = seeds("evaluate", epoch - 1, config.evaluation_episodes)
        greedy, sampled = returns(greedy_act(learner), chosen), returns(sampled_act(learner, chosen), chosen)
        rows.append(_row(run, transitions, trained, greedy, sampled, planned[reported:]))
        trained, reported = [], len(planned)
    centre_MD, weight_MU = learner.compressed()
    trained_by = {"algorithm": ONLINE_ALGORITHM, "seed": run.seed}
    KernelPolicy.of(spec, features, kernel, centre_MD, weight_MU, trained_by).save(run.folder / "policy")
    write_curves(run.folder / CURVES_FILE, rows)
    warnings = failure_warnings(failed)
    if unstable := [one.radius for one in planned if radius_warning(one.radius)]:
        warnings.append(f"in {len(unstable)} of {len(planned)} improvements {radius_warning(max(unstable))}")
    return warnings


def _row(
    run: _Run,
    transitions: int,
    trained: Sequence[float],
    greedy: Sequence[float],
    sampled: Sequence[float],
    planned: Sequence[Epoch],
) -> CurveRow:
    """Return a row of the curve: returns of the episodes since the last row, and the improvements."""
    return CurveRow(
        algorithm=ONLINE_ALGORITHM,
        task=run.spec.name,
        seed=run.seed,
        transitions=transitions,
        train_return=math.fsum(trained) / len(trained),
        greedy_return=math.fsum(greedy) / len(greedy),
        greedy_min=min(greedy),
        greedy_max=max(greedy),
        sampled_return=math.fsum(sampled) / len(sampled),
        centres=planned[-1].num_centres,
        spectral_radius=planned[-1].radius,
    )
