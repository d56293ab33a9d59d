"""The stage powr."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from ...datasets.facts import read_store_facts
from ...datasets.tables import check_same_tables, find_names
from ...pipeline.artifact import link
from ...pipeline.errors import ConfigError
from ...pipeline.jobs.fanout import MemberJobs, fan_out_members, pack_by_task
from ...pipeline.reading import read_made
from ...pipeline.stage import Context, Input, Stage
from ...pipeline.wording import counted
from ..policy.policy_index import policy_entry, write_index
from ..world_model.facts import read_model_facts
from .config import ALGORITHM, FIT_FILE, PowrConfig


class Powr(Stage):
    """Plan policies on a store by kernel regression and policy mirror descent (POWR).

    There is one policy per task and seed; `fit.csv` reports each regression.
    """

    Config = PowrConfig
    inputs = {
        "store": Input("store", facts=read_store_facts),
        "world_model": Input("world_model", optional=True, facts=read_model_facts),
    }
    output_kind = "policies"
    algorithms = (ALGORITHM,)
    not_hashed = ("accelerator", "fanout")
    config: PowrConfig

    def check(self) -> None:
        self.config.fanout.check_gpus(self.config.accelerator, "powr.accelerator")

    def check_input(self, name: str, folder: Path, facts: Any) -> None:
        if name == "store" and facts is not None:
            find_names(facts.tasks, self.config.tasks, folder, "store")
        if name == "world_model" and facts is not None and self.config.states == "latent":
            facts.check_single("powr.states=latent", folder)
            facts.check_predicts("latents", "powr.states=latent", folder)

    def check_machine(self) -> None:
        self.config.fanout.check_machine(self.config.accelerator, "powr.accelerator")

    def run(self, context: Context) -> str:
        import pandas as pd

        from ...datasets.schema import read_table
        from ...datasets.store import TaskStore, data_digests
        from .job import plan_policies
        from .stability import radius_warning

        config, folder = self.config, context.input("store")
        table = TaskStore.open(folder).table
        hashed = ["world_model"] if config.states == "latent" else []
        if hashed:
            if not context.inputs["world_model"]:
                raise ConfigError(
                    "powr.states=latent needs a world model: run pretrain first, or set inputs.world_model="
                )
            check_same_tables(read_table(context.input("world_model")), table, context)
        names = find_names(table.names, config.tasks, folder, "store")
        slugs = {name: table.spec_of(name).slug for name in names}
        data = data_digests(folder)
        members: list[dict[str, Any]] = [
            {"task": name, "seed": seed, "data": data[name]} for name in names for seed in range(config.seeds)
        ]
        of_job = dataclasses.replace(config, tasks=[], seeds=1)
        program = MemberJobs(
            {"config": {**dataclasses.asdict(of_job), "fanout": {}}},
            members,
            partial(
                pack_by_task,
                per_job=config.fanout.policies_per_job,
                slug=lambda member: slugs[member["task"]],
            ),
            [f"config.{key}" for key in self.not_hashed],
        )
        (found,) = fan_out_members(
            [program], plan_policies, context, config.fanout, accelerator=config.accelerator, hashed=hashed
        )
        entries, facts = [], []
        for member, result in zip(members, found, strict=True):
            name, seed = member["task"], member["seed"]
            entry = policy_entry(ALGORITHM, table.spec_of(name), seed)
            link(result / entry["path"], context.folder / entry["path"])
            fit = read_made(result / entry["path"] / FIT_FILE, dict[str, Any])
            if (message := radius_warning(fit["spectral_radius"])) is not None:
                context.log.warning("%s, seed %d: %s", name, seed, message)
            entries.append(entry)
            facts.append({"task": name, "seed": seed, **fit})
        write_index(context.folder, table, entries)
        pd.DataFrame(facts).to_csv(context.folder / "fit.csv", index=False)
        largest, steps = max(fit["centres"] for fit in facts), config.offline.planner.steps
        return (
            f"{counted(len(entries), 'policy', 'policies')} for {counted(len(names), 'task')}, {largest} centres, "
            f"{steps} steps each"
        )
