"""The stage baselines."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datasets.schema import TaskSpec
from ...pipeline.errors import ConfigError
from ...pipeline.jobs.fanout import run_all
from ...pipeline.seeding import derive_seed
from ...pipeline.stage import Context, Input, Stage
from ...pipeline.wording import counted
from ..policy.policy_index import policy_entry, write_index
from ..powr.curves import (
    CURVES_FILE,
    FIGURE_FILE,
    CurveRow,
    completed_returns,
    draw_curves,
    failure_warnings,
    read_curves,
    write_curves,
)
from .config import LIBRARIES, BaselinesConfig

if TYPE_CHECKING:
    from .mlp_policy import MlpPolicy

REWARD_ROWS = 65536
"""Transitions of the data that the reward is scaled by, at most."""


@dataclass(frozen=True)
class _Job:
    config: BaselinesConfig
    spec: TaskSpec
    algorithm: str
    seed: int
    statistics: tuple[Any, Any, float] | None
    """Mean and standard deviation of the task's observations, [O] float32 each, and that of its rewards; None without
    a store."""
    artifact: Path

    def __str__(self) -> str:
        return f"{self.algorithm} on {self.spec.name}, seed {self.seed}"

    @property
    def entry(self) -> dict[str, Any]:
        return policy_entry(self.algorithm, self.spec, self.seed)

    @property
    def folder(self) -> Path:
        return self.artifact / self.entry["path"]

    @property
    def finished(self) -> bool:
        return (self.folder / "policy.json").is_file()


class Baselines(Stage):
    """Train SAC, PPO, DQN, A2C and TRPO (Stable-Baselines3) online in each task's environment, as model-free baselines.

    If there is a store, its tasks are trained with observations and rewards scaled by the standard deviations of its
    data, which is not used otherwise, and every episode end counts as terminal. Each run has its own process; finished
    runs are kept if the stage is interrupted.
    """

    Config = BaselinesConfig
    inputs = {"store": Input("store", optional=True)}
    output_kind = "policies"
    algorithms = tuple(LIBRARIES)
    run_keys = ("seeds", "seed", "algorithms")
    config: BaselinesConfig

    def check(self) -> None:
        for package in sorted({LIBRARIES[name] for name in self.config.algorithms}):
            if importlib.util.find_spec(package) is None:
                raise ConfigError(
                    f"baselines needs the package {package}, which is not installed: pip install 'orrery[baselines]', "
                    "or remove its algorithms from `algorithms`"
                )

    def check_inputs(self, inputs: Mapping[str, Sequence[Any]]) -> None:
        if not inputs["store"]:
            self._tasks(())

    def run(self, context: Context) -> str:
        config = self.config
        jobs = [
            _Job(config, spec, algorithm, seed, statistics, context.folder)
            for spec, statistics in self._tasks(context.inputs["store"])
            for algorithm in config.algorithms
            for seed in range(config.seeds)
        ]
        waiting = [job for job in jobs if not job.finished]
        with context.progress("baselines", total=len(jobs), completed=len(jobs) - len(waiting)) as progress:
            for job, messages in run_all(_learn, waiting, workers=context.workers, kept="finished runs"):
                for message in messages:
                    context.log.warning("%s: %s", job, message)
                progress.advance(1)
                progress.note(str(job))
        specs = list({job.spec.name: job.spec for job in jobs}.values())
        write_index(context.folder, specs, [job.entry for job in jobs])
        learned = (
            f"{counted(len(jobs), 'policy', 'policies')} for {counted(len(specs), 'task')}, {config.steps:,} steps each"
        )
        if not config.evaluate_every:
            return learned
        rows = [row for job in jobs for row in read_curves(job.folder / CURVES_FILE)]
        write_curves(context.folder / CURVES_FILE, rows)
        draw_curves(rows, None, context.folder / FIGURE_FILE)
        last = [row for row in rows if row.transitions >= config.steps]
        returns = {name: [row.greedy_return for row in last if row.algorithm == name] for name in config.algorithms}
        means = ", ".join(f"{name} {math.fsum(own) / len(own):.1f}" for name, own in returns.items())
        return f"last greedy return {means} (mean over tasks and seeds); {learned}"

    def _tasks(self, stores: Sequence[Path]) -> list[tuple[TaskSpec, tuple[Any, Any, float] | None]]:
        """The tasks, with statistics where there is a store.

        Raises:
            ConfigError: there is none, or an algorithm cannot choose a task's actions.
        """
        from ...datasets.tasks import task_spec

        tasks: list[tuple[TaskSpec, tuple[Any, Any, float] | None]] = []
        for folder in stores:
            from ...datasets.store import TaskStore
            from ..sequence_model.losses import observation_statistics

            store = TaskStore.open(folder)
            for name in self.config.tasks or store.table.names:
                rows = store.rows_of(name)
                mean, scale = observation_statistics(rows, rows.spec.observation_dim)
                reward = float(rows.rows[rows.sample_transitions(REWARD_ROWS), -1].double().std())
                size = rows.spec.observation_dim
                tasks.append((rows.spec, (mean[:size].numpy(), scale[:size].numpy(), max(reward, 1e-6))))
        for name in () if stores else self.config.tasks:
            spec = task_spec(name)
            if self.config.environment:
                environment = {**spec.environment, "kwargs": dict(self.config.environment)}
                spec = dataclasses.replace(spec, environment=environment)
            tasks.append((spec, None))
        if not tasks:
            raise ConfigError(
                "baselines has no tasks: set baselines.tasks, such as [gymnasium/CartPole-v1], or run pack before it"
            )
        for spec, _ in tasks:
            lacking = "dqn" if spec.action_kind == "continuous" else "sac"
            if lacking in self.config.algorithms:
                raise ConfigError(
                    f"baselines.algorithms: {lacking} cannot learn {spec.name}, whose actions are {spec.action_kind}"
                )
        return tasks


def _settings(job: _Job) -> dict[str, Any]:
    """Arguments of the library's class beside those that all have."""
    if job.algorithm != "sac":
        return {}
    given = dataclasses.asdict(job.config.sac)
    architecture = {"pi": given.pop("actor_units"), "qf": given.pop("critic_units")}
    return {**given, "policy_kwargs": {"net_arch": architecture}}


def _learn(job: _Job) -> list[str]:
    """Train one agent; write its policy and its curve. Returns warnings. Runs in a worker process."""
    import numpy as np
    import torch

    from ...datasets.rollout import play_episodes, policy_act
    from ...datasets.tasks import make_environment
    from .environment import LibraryEnv
    from .mlp_policy import MlpPolicy

    torch.set_num_threads(1)
    config, spec = job.config, job.spec
    pool = [make_environment(spec)]
    seed = derive_seed(job.algorithm, config.seed, spec.name, job.seed) % 2**31
    model = getattr(importlib.import_module(LIBRARIES[job.algorithm]), job.algorithm.upper())(
        "MlpPolicy",
        LibraryEnv(spec, job.statistics),
        seed=seed,
        device="cpu",
        stats_window_size=config.evaluate_every or 100,
        **_settings(job),
    )
    # The library's own logger makes a folder in the temporary directory for every run.
    model.set_logger(importlib.import_module("stable_baselines3.common.logger").Logger(None, []))

    def policy() -> MlpPolicy:
        trained_by = {"algorithm": job.algorithm, "seed": job.seed}
        return MlpPolicy.from_agent(model.policy, job.statistics, spec, trained_by)

    rows: list[CurveRow] = []
    failed: list[str] = []

    def evaluate() -> None:
        count = config.evaluation_episodes
        seeds = [derive_seed("evaluate baseline", seed, len(rows), index) % 2**31 for index in range(count)]
        played = play_episodes(spec, policy_act(policy()), seeds, pool=pool, lanes=count)
        returns = completed_returns((result for _, result in played), spec.name, failed)
        trained = [episode["r"] for episode in model.ep_info_buffer]
        model.ep_info_buffer.clear()
        rows.append(
            CurveRow(
                algorithm=job.algorithm,
                task=spec.name,
                seed=job.seed,
                transitions=model.num_timesteps,
                train_return=float(np.mean(trained)) if trained else math.nan,
                greedy_return=float(np.mean(returns)),
                greedy_min=min(returns),
                greedy_max=max(returns),
                sampled_return=math.nan,
            )
        )

    def watch(_locals: dict[str, Any], _globals: dict[str, Any]) -> bool:
        """Called after every step. True: continue."""
        if model.num_timesteps % config.evaluate_every == 0 and model.num_timesteps < config.steps:
            evaluate()
        return True

    # One call: the exploration of DQN falls over a tenth of all steps, and would over a tenth of each part's.
    model.learn(config.steps, callback=watch if config.evaluate_every else None)
    if config.evaluate_every:
        evaluate()
        job.folder.mkdir(parents=True, exist_ok=True)
        write_curves(job.folder / CURVES_FILE, rows)
    policy().save(job.folder)
    return failure_warnings(failed)
