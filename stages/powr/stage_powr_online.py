"""The stage powr_online."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...pipeline.errors import ConfigError
from ...pipeline.jobs.fanout import run_all
from ...pipeline.seeding import derive_seed
from ...pipeline.stage import Context, Input, Stage
from ..policy.policy_index import write_index
from .config import PowrOnlineConfig, discrete_task
from .curves import (
    CURVES_FILE,
    FIGURE_FILE,
    CurveRow,
    completed_returns,
    draw_curves,
    failure_warnings,
    read_curves,
    write_curves,
)

if TYPE_CHECKING:
    from ...datasets.schema import Episode, TaskSpec
    from .online import Epoch

ALGORITHM = "powr_online"


@dataclass(frozen=True)
class _Job:
    config: PowrOnlineConfig
    spec: TaskSpec
    seed: int
    folder: Path

    def __str__(self) -> str:
        return f"powr_online on {self.spec.name}, seed {self.seed}"


class PowrOnline(Stage):
    """Learn policies online by POWR, and draw learning curves.

    There is one policy per seed. Curves of earlier stages of the run, such as baselines, are drawn in the same figure.
    """

    Config = PowrOnlineConfig
    inputs = {"curves": Input("policies", optional=True, many=True)}
    output_kind = "policies"
    algorithms = (ALGORITHM,)
    config: PowrOnlineConfig

    def check(self) -> None:
        if not self.config.task:
            raise ConfigError(
                "powr_online.task is empty: name a task, for example powr_online.task=gymnasium/CartPole-v1"
            )
        discrete_task(self.config.task, self.config.environment)

    def run(self, context: Context) -> str:
        config = self.config
        spec = discrete_task(config.task, config.environment)
        jobs = [_Job(config, spec, seed, context.folder / f"seed_{seed}") for seed in range(config.seeds)]
        waiting = [job for job in jobs if not (job.folder / CURVES_FILE).is_file()]
        with context.progress("powr_online", total=len(jobs), completed=len(jobs) - len(waiting)) as progress:
            for job, messages in run_all(_learn, waiting, workers=context.workers, kept="finished seeds"):
                for message in messages:
                    context.log.warning("%s: %s", job, message)
                progress.advance(1)
        return self._publish(context, spec, jobs)

    def _publish(self, context: Context, spec: TaskSpec, jobs: Sequence[_Job]) -> str:
        rows = [row for job in jobs for row in read_curves(job.folder / CURVES_FILE)]
        write_curves(context.folder / CURVES_FILE, rows)
        paths = [folder / CURVES_FILE for folder in context.inputs.get("curves", ())]
        others = [row for path in paths if path.is_file() for row in read_curves(path)]
        draw_curves([*rows, *others], self.config.threshold, context.folder / FIGURE_FILE)
        entries = [
            {"algorithm": ALGORITHM, "task": spec.name, "seed": job.seed, "path": f"{job.folder.name}/policy"}
            for job in jobs
        ]
        write_index(context.folder, [spec], entries)
        last = [row for row in rows if row.transitions >= self.config.transitions]
        returns = sorted(row.greedy_return for row in last)
        return (
            f"last greedy return {returns[len(returns) // 2]:.1f} (median of {len(jobs)} seeds, "
            f"{returns[0]:.1f} to {returns[-1]:.1f}) after {self.config.transitions:,} transitions of {spec.name}"
        )


def _learn(job: _Job) -> list[str]:
    """Learn with one seed; write its curve and its policy. Returns warnings. Runs in a worker process."""
    import torch

    from ...datasets.rollout import play_episodes
    from ...datasets.tasks import make_environment
    from .features import index_features, raw_features
    from .kernels import StateKernel
    from .online import OnlineLearner, completed, greedy_act, sampled_act
    from .policy import KernelPolicy
    from .stability import radius_warning

    torch.set_num_threads(1)
    config, spec = job.config, job.spec
    pool = [make_environment(spec)]
    discrete = type(pool[0].native.observation_space).__name__ == "Discrete"
    features = index_features(spec.observation_dim) if discrete else raw_features(spec.observation_dim)
    kernel = StateKernel.of(config.kernel, config.scale[0] if len(config.scale) == 1 else config.scale)
    learner = OnlineLearner(features, kernel, spec.action_dim, config.discount, config.planner, job.seed)

    def seeds(purpose: str, epoch: int, count: int) -> list[int]:
        parts = (config.seed, job.seed, epoch)
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
        chosen = seeds("collect", epoch, config.episodes if epoch else config.warm_up_episodes)
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
        rows.append(_row(job, transitions, trained, greedy, sampled, planned[reported:]))
        trained, reported = [], len(planned)
    centre_MD, weight_MU = learner.compressed()
    trained_by = {"algorithm": ALGORITHM, "seed": job.seed}
    KernelPolicy.of(spec, features, kernel, centre_MD, weight_MU, trained_by).save(job.folder / "policy")
    write_curves(job.folder / CURVES_FILE, rows)
    warnings = failure_warnings(failed)
    if unstable := [one.radius for one in planned if radius_warning(one.radius)]:
        warnings.append(f"in {len(unstable)} of {len(planned)} improvements {radius_warning(max(unstable))}")
    return warnings


def _row(
    job: _Job,
    transitions: int,
    trained: Sequence[float],
    greedy: Sequence[float],
    sampled: Sequence[float],
    planned: Sequence[Epoch],
) -> CurveRow:
    """Return a row of the curve: returns of the episodes since the last row, and the improvements."""
    return CurveRow(
        algorithm=ALGORITHM,
        task=job.spec.name,
        seed=job.seed,
        transitions=transitions,
        train_return=math.fsum(trained) / len(trained),
        greedy_return=math.fsum(greedy) / len(greedy),
        greedy_min=min(greedy),
        greedy_max=max(greedy),
        sampled_return=math.fsum(sampled) / len(sampled),
        centres=planned[-1].num_centres,
        spectral_radius=planned[-1].radius,
    )
