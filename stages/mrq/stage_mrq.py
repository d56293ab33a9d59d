"""mrq: MR.Q from a store, one policy per task and seed; the encoder is trained first, then everything."""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING, Any

from ...pipeline.errors import StageError
from ...pipeline.jobs.config import FanoutConfig
from ...pipeline.reading import read_csv
from ...pipeline.stage import Context, Input, Stage
from ..policy.policy_index import policy_entry, write_index
from ..world_model.reward_range import rewards_beyond_bins
from .config import MrqConfig, algorithm_name

if TYPE_CHECKING:
    from ...datasets.store import TaskStore


class Mrq(Stage):
    """Policies for all tasks, variants and seeds, and training.csv."""

    Config = MrqConfig
    inputs = {"store": Input("store"), "world_model": Input("world_model", optional=True)}
    output_kind = "policies"
    algorithms = ("mrq",)
    run_keys = ("seeds", "seed")
    not_hashed = ("load_up_to_gb", "log_every", "checkpoint_every", "accelerator", "fanout")
    config: MrqConfig

    def check(self) -> None:
        self.config.fanout.check_gpus(self.config.accelerator, "mrq.accelerator")

    def check_machine(self) -> None:
        self.config.fanout.check_machine(self.config.accelerator, "mrq.accelerator")

    def run(self, context: Context) -> str:
        import pandas as pd

        from ...datasets.store import TaskStore
        from ...pipeline.jobs.fanout import FolderJob, fan_out
        from .offline import learn_offline

        store = TaskStore.open(context.input("store"))
        if self.config.start_from_world_model:
            self._check_world_model(context, store)
        learn = self.config.learn
        learned = [store.rows_of(name).summary for name in self.config.tasks or store.table.names]
        said = rewards_beyond_bins(learned, learn.networks.bin_limit, "mrq.learn.networks.bin_limit")
        if said is not None and learn.design.two_hot_reward:
            context.log.warning("mrq: %s", said)
        payloads = self._payloads(store)
        jobs = [FolderJob(name, payload) for name, payload in payloads.items()]
        results = fan_out(jobs, learn_offline, context, self.config.fanout, accelerator=self.config.accelerator)
        entries, curves = [], []
        for name, payload in payloads.items():
            for member in payload["members"]:
                entry = policy_entry(payload["algorithm"], store.table.spec_of(member["task"]), member["seed"])
                shutil.copytree(results[name] / entry["path"], context.folder / entry["path"], dirs_exist_ok=True)
                entries.append(entry)
            curves.append(read_csv(results[name] / "curve.csv"))
        write_index(context.folder, store.table, entries)
        pd.concat(curves, ignore_index=True).to_csv(context.folder / "training.csv", index=False)
        tasks = len({entry["task"] for entry in entries})
        return f"{len(entries)} policies for {tasks} tasks, {self.config.updates:,} updates each"

    def _payloads(self, store: TaskStore) -> dict[str, dict[str, Any]]:
        """Of each job by its name: a program of one or more members."""
        from ...pipeline.accelerator import device_of
        from .offline import OfflineMember, split_members

        config = self.config
        names = config.tasks or list(store.table.names)
        for name in names:
            store.table.id_of(name)
        members = [OfflineMember(name, seed) for name in names for seed in range(config.seeds)]
        per_job = config.fanout.members_per_job or (1 if device_of(config.accelerator).type == "cpu" else len(members))
        of_job = dataclasses.replace(config, tasks=[], seeds=1, variants=["mrq"], fanout=FanoutConfig())
        settings = {key: value for key, value in dataclasses.asdict(of_job).items() if key != "fanout"}
        payloads = {}
        for variant in config.variants:
            algorithm = algorithm_name("mrq", variant)
            for number, group in enumerate(split_members(members, store.table, per_job)):
                payloads[f"{algorithm}.{number}"] = {
                    "algorithm": algorithm,
                    "variant": variant,
                    "members": [dataclasses.asdict(member) for member in group],
                    "config": settings,
                }
        return payloads

    def _check_world_model(self, context: Context, store: TaskStore) -> None:
        from ...datasets.schema import read_table
        from ...datasets.tables import check_same_tables

        if not context.inputs["world_model"]:
            raise StageError(
                "mrq.start_from_world_model needs a world model: list the stage pretrain before mrq, or give "
                "inputs.world_model=FOLDER"
            )
        check_same_tables(read_table(context.input("world_model")), store.table, context)
