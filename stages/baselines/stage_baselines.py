"""The stage baselines."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...datasets.schema import TaskSpec
from ...pipeline.artifact import link
from ...pipeline.errors import ConfigError
from ...pipeline.jobs.fanout import MemberJobs, fan_out_members, pack_by_task
from ...pipeline.stage import Context, Input, Stage
from ...pipeline.wording import counted
from ..policy.policy_index import policy_entry, write_index
from ..powr.curves import CURVES_FILE, FIGURE_FILE, draw_curves, read_curves, write_curves
from .config import EPISODES_FILE, LIBRARIES, BaselinesConfig, SacConfig


class Baselines(Stage):
    """Train SAC, PPO, DQN, A2C and TRPO (Stable-Baselines3) online in each task's environment, as model-free baselines.

    If there is a store, its tasks are trained with observations and rewards scaled by the standard deviations of its
    data, which is not used otherwise, and every episode end counts as terminal. Each run has its own process. If the
    stage is interrupted, finished runs are kept, and others continue from their last checkpoint bit for bit.
    """

    Config = BaselinesConfig
    inputs = {"store": Input("store", optional=True)}
    output_kind = "policies"
    algorithms = tuple(LIBRARIES)
    not_hashed = ("checkpoint_every", "fanout")
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

    def check_machine(self) -> None:
        self.config.fanout.check_machine(key="baselines.fanout")

    def run(self, context: Context) -> str:
        from .job import learn_policies

        config = self.config
        tasks = self._tasks(context.inputs["store"])
        specs = [spec for spec, _ in tasks]
        members: list[dict[str, Any]] = [
            {
                "task": spec.to_dict(), "algorithm": algorithm, "seed": seed, "statistics": statistics,
                "settings": self._settings(algorithm),
            }
            for spec, statistics in tasks
            for algorithm in config.algorithms
            for seed in range(config.seeds)
        ]  # fmt: skip
        of_job = dataclasses.replace(config, tasks=[], environment={}, algorithms=["ppo"], sac=SacConfig(), seeds=1)
        program = MemberJobs(
            {"config": {**dataclasses.asdict(of_job), "fanout": {}}},
            members,
            partial(
                pack_by_task,
                per_job=config.fanout.per_job(len(members), 1),
                slug=lambda member: TaskSpec.from_dict(member["task"]).slug,
            ),
            ["config.checkpoint_every"],
        )
        (found,) = fan_out_members([program], learn_policies, context, config.fanout, hashed=[])
        entries, rows = [], []
        for member, result in zip(members, found, strict=True):
            entry = policy_entry(member["algorithm"], TaskSpec.from_dict(member["task"]), member["seed"])
            link(result / entry["path"], context.folder / entry["path"])
            if config.keep_replay:
                entry["episodes"] = f"{entry['path']}/{EPISODES_FILE}"
            entries.append(entry)
            if config.evaluate_every:
                rows += read_curves(context.folder / entry["path"] / CURVES_FILE)
        write_index(context.folder, specs, entries)
        learned = (
            f"{counted(len(entries), 'policy', 'policies')} for {counted(len(specs), 'task')}, "
            f"{config.steps:,} steps each"
        )
        if not config.evaluate_every:
            return learned
        write_curves(context.folder / CURVES_FILE, rows)
        draw_curves(rows, None, context.folder / FIGURE_FILE)
        last = [row for row in rows if row.transitions >= config.steps]
        returns = {name: [row.greedy_return for row in last if row.algorithm == name] for name in config.algorithms}
        means = ", ".join(f"{name} {math.fsum(own) / len(own):.1f}" for name, own in returns.items())
        return f"last greedy return {means} (mean over tasks and seeds); {learned}"

    def _settings(self, algorithm: str) -> dict[str, Any]:
        """Arguments of the library's class beside those that all have."""
        if algorithm != "sac":
            return {}
        given = dataclasses.asdict(self.config.sac)
        architecture = {"pi": given.pop("actor_units"), "qf": given.pop("critic_units")}
        return {**given, "policy_kwargs": {"net_arch": architecture}}

    def _tasks(self, stores: Sequence[Path]) -> list[tuple[TaskSpec, list[Any] | None]]:
        """The tasks, with statistics where there is a store: mean and standard deviation of the observations, and that
        of the rewards.

        Raises:
            ConfigError: there is none, or an algorithm cannot choose a task's actions.
        """
        from ...datasets.tasks import task_spec

        tasks: list[tuple[TaskSpec, list[Any] | None]] = []
        for folder in stores:
            from ...datasets.store import TaskStore
            from ...datasets.tables import find_names
            from ..sequence_model.losses import observation_statistics

            store = TaskStore.open(folder)
            for name in find_names(store.table.names, self.config.tasks, folder, "store"):
                rows = store.rows_of(name)
                mean, scale = observation_statistics(rows, rows.spec.observation_dim)
                size = rows.spec.observation_dim
                tasks.append((rows.spec, [mean[:size].tolist(), scale[:size].tolist(), max(rows.reward_std(), 1e-6)]))
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
