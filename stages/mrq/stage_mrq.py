"""The stage mrq."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datasets.facts import read_store_facts
from ...datasets.tables import check_same_tables, find_names
from ...pipeline.artifact import link
from ...pipeline.errors import StageError
from ...pipeline.jobs.fanout import MemberJobs, fan_out_members
from ...pipeline.reading import read_csv
from ...pipeline.stage import Context, Input, Stage
from ...pipeline.wording import counted
from ..policy.policy_index import policy_entry, write_costs, write_index
from ..training.config import check_loggers_installed
from ..world_model.facts import read_model_facts
from ..world_model.reward_range import beyond_bins
from .config import MrqConfig, algorithm_name

if TYPE_CHECKING:
    from ...datasets.store import TaskStore


class Mrq(Stage):
    """Train MR.Q policies on a store.

    There is one policy per task, variant and seed. The encoder trains first, then everything.
    """

    Config = MrqConfig
    inputs = {
        "store": Input("store", facts=read_store_facts),
        "world_model": Input("world_model", optional=True, facts=read_model_facts),
    }
    output_kind = "policies"
    algorithms = ("mrq",)
    not_hashed = ("load_up_to_gb", "log_every", "loggers", "checkpoint_every", "accelerator", "fanout")
    config: MrqConfig

    def check(self) -> None:
        self.config.fanout.check_gpus(self.config.accelerator, "mrq.accelerator")

    def check_input(self, name: str, folder: Path, facts: Any) -> None:
        if name == "store" and facts is not None:
            find_names(facts.tasks, self.config.tasks, folder, "store")
        if name == "world_model" and facts is not None and self.config.start_from_world_model:
            facts.check_single("mrq.start_from_world_model=true", folder)
            facts.check_predicts("latents", "mrq.start_from_world_model=true", folder)

    def check_machine(self) -> None:
        self.config.fanout.check_machine(self.config.accelerator, "mrq.accelerator")
        check_loggers_installed(self.config, "mrq")

    def run(self, context: Context) -> str:
        import pandas as pd

        from ...datasets.store import TaskStore
        from .offline import learn_offline

        store = TaskStore.open(context.input("store"))
        if self.config.start_from_world_model:
            self._check_world_model(context, store)
        learn = self.config.learn
        names = find_names(store.table.names, self.config.tasks, store.folder, "store")
        learned = [store.rows_of(name) for name in names]
        for task in learned:
            task.check_rewards("mrq.tasks")
        said = beyond_bins(learned, learn.networks.bin_limit, "mrq.learn.networks.bin_limit", values=False)
        if said is not None and learn.design.two_hot_reward:
            context.log.warning("mrq: %s", said)
        programs = self._programs(store, names)
        found = fan_out_members(
            programs, learn_offline, context, self.config.fanout, accelerator=self.config.accelerator,
            hashed=["world_model"] if self.config.start_from_world_model else [],
        )  # fmt: skip
        entries, curves = [], []
        for program, results in zip(programs, found, strict=True):
            logged = {result: read_csv(result / "curve.csv", ["task"]) for result in dict.fromkeys(results)}
            for member, result in zip(program.members, results, strict=True):
                task, seed = member["task"], member["seed"]
                entry = policy_entry(program.payload["algorithm"], store.table.spec_of(task), seed)
                link(result / entry["path"], context.folder / entry["path"])
                entries.append(entry)
                rows = logged[result]
                curves.append(rows[(rows["task"] == task) & (rows["seed"] == seed)])
        write_index(context.folder, store.table, entries)
        write_costs(context.folder, entries, [result for results in found for result in results])
        pd.concat(curves, ignore_index=True).to_csv(context.folder / "training.csv", index=False)
        tasks = len({entry["task"] for entry in entries})
        return (
            f"{counted(len(entries), 'policy', 'policies')} for {counted(tasks, 'task')}, {self.config.updates:,} "
            "updates each"
        )

    def _programs(self, store: TaskStore, names: Sequence[str]) -> list[MemberJobs]:
        """One for each variant."""
        from ...datasets.store import data_digests
        from ...pipeline.accelerator import device_of, wants_gpu
        from .offline import OfflineMember, split_members

        config = self.config
        data = data_digests(store.folder)
        members = [OfflineMember(name, seed, data[name]) for name in names for seed in range(config.seeds)]
        of_job = dataclasses.replace(config, tasks=[], seeds=1, variants=["mrq"])
        settings = {**dataclasses.asdict(of_job), "fanout": {}}
        widths = [store.table.observation_dim, store.table.action_dim]  # padded, as networks are
        # A GPU that is named may be another machine's.
        on_cpu = not wants_gpu(config.accelerator) and device_of(config.accelerator).type == "cpu"

        def pack(algorithm: str, own: Sequence[Any]) -> dict[str, list[Any]]:
            per_job = config.fanout.policies_per_job or (1 if on_cpu else len(own))
            groups = split_members([OfflineMember(**one) for one in own], store.table, per_job)
            return {f"{algorithm}.{n}": list(map(dataclasses.asdict, group)) for n, group in enumerate(groups)}

        return [
            MemberJobs(
                {"algorithm": algorithm, "variant": variant, "config": settings, "widths": widths},
                [dataclasses.asdict(one) for group in split_members(members, store.table, 1) for one in group],
                partial(pack, algorithm),
                [f"config.{name}" for name in self.not_hashed],
            )
            for variant in config.variants
            for algorithm in [algorithm_name("mrq", variant)]
        ]

    def _check_world_model(self, context: Context, store: TaskStore) -> None:
        from ...datasets.schema import read_table

        if not context.inputs["world_model"]:
            raise StageError(
                "mrq.start_from_world_model needs a world model: add the stage pretrain before mrq, or set "
                "inputs.world_model=FOLDER"
            )
        check_same_tables(read_table(context.input("world_model")), store.table, context)
