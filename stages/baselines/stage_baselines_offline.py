"""The stage baselines_offline."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ...datasets.facts import DataFacts, read_store_facts
from ...datasets.tables import find_names
from ...datasets.tasks import SIMULATED, task_spec
from ...pipeline.artifact import link
from ...pipeline.errors import ConfigError
from ...pipeline.reading import read_csv
from ...pipeline.stage import Context, Input, Stage
from ...pipeline.wording import counted
from ..policy.policy_index import policy_entry, write_costs, write_index
from .config import D3RLPY, BaselinesOfflineConfig

if TYPE_CHECKING:
    from ...datasets.schema import TaskSpec


class BaselinesOffline(Stage):
    """Train TD3+BC, IQL, ReBRAC, CQL, TD3 or SAC (d3rlpy) on a store, as model-free baselines.

    There is one policy per task, algorithm and seed, from transitions of its task alone.
    """

    Config = BaselinesOfflineConfig
    inputs = {"store": Input("store", facts=read_store_facts)}
    output_kind = "policies"
    algorithms = tuple(D3RLPY)
    not_hashed = ("log_every", "checkpoint_every", "fanout")
    config: BaselinesOfflineConfig

    def check(self) -> None:
        if importlib.util.find_spec("d3rlpy") is None:
            raise ConfigError(
                "baselines_offline needs the package d3rlpy, which is not installed: pip install 'orrery[baselines]', "
                f"or remove its algorithms ({', '.join(self.config.algorithms)}) from algorithms"
            )

    def check_input(self, name: str, folder: Path, facts: DataFacts | None) -> None:
        names = () if facts is None else find_names(facts.tasks, self.config.tasks, folder, "store")
        _check_continuous(task_spec(name) for name in names if name.startswith(SIMULATED))

    def check_machine(self) -> None:
        self.config.fanout.check_machine(key="baselines_offline.fanout")
        if self.config.settings:
            from .offline import build_agent

            spec = task_spec("myriad/cancer")
            for algorithm in self.config.settings:
                build_agent(algorithm, spec, self.config)

    def run(self, context: Context) -> str:
        import pandas as pd

        from ...datasets.store import TaskStore, data_digests
        from ...pipeline.jobs.fanout import FolderJob, fan_out
        from .offline import learn_offline

        config = self.config
        store = TaskStore.open(context.input("store"))
        names = find_names(store.table.names, config.tasks, store.folder, "store")
        tasks = [store.rows_of(name) for name in names]
        _check_continuous(task.spec for task in tasks)
        for task in tasks:
            task.check_rewards("baselines_offline.tasks")
        data = data_digests(store.folder)
        jobs, entries = [], []
        for task in tasks:
            for algorithm in config.algorithms:
                settings = {name: own for name, own in config.settings.items() if name == algorithm}
                of_job = dataclasses.replace(config, tasks=[], algorithms=[algorithm], seeds=1, settings=settings)
                values = {**dataclasses.asdict(of_job), "fanout": {}}
                for seed in range(config.seeds):
                    payload = {
                        "algorithm": algorithm, "task": task.spec.name, "seed": seed, "config": values,
                        "data": data[task.spec.name],
                    }  # fmt: skip
                    name = f"{algorithm}.{task.spec.slug}.seed_{seed}"
                    jobs.append(FolderJob(name, payload, [f"config.{key}" for key in self.not_hashed]))
                    entries.append(policy_entry(algorithm, task.spec, seed))
        found = fan_out(jobs, learn_offline, context, config.fanout, hashed=[])
        results = [found[job.name] for job in jobs]
        for entry, result in zip(entries, results, strict=True):
            link(result / "policy", context.folder / entry["path"])
        write_index(context.folder, store.table, entries)
        write_costs(context.folder, entries, results)
        curves = [read_csv(result / "curve.csv") for result in results]
        pd.concat(curves, ignore_index=True).to_csv(context.folder / "training.csv", index=False)
        return (
            f"{counted(len(entries), 'policy', 'policies')} for {counted(len(tasks), 'task')}, {config.updates:,} "
            "updates each"
        )


def _check_continuous(specs: Iterable[TaskSpec]) -> None:
    if discrete := [spec.name for spec in specs if spec.action_kind == "discrete"]:
        raise ConfigError(
            f"baselines_offline: its algorithms need continuous actions, and those of {', '.join(discrete)} are "
            "discrete; exclude such tasks with baselines_offline.tasks, or use algorithms=[mrq], which handles both"
        )
