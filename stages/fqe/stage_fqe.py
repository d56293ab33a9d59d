"""The stage fqe."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from ...datasets.facts import read_store_facts
from ...datasets.schema import read_table
from ...datasets.store import data_digests
from ...pipeline.artifact import link, write_json
from ...pipeline.entry_points import load
from ...pipeline.errors import CheckpointError, ConfigError, StageError
from ...pipeline.jobs.fanout import MemberJobs, fan_out_members, pack_by_task
from ...pipeline.reading import read_json, read_made
from ...pipeline.stage import Context, Input, Stage
from ...pipeline.wording import counted
from ..policy.policy_index import PolicyIndex
from .config import FqeConfig
from .estimates import ESTIMATES_FILE, SELECTION_FILE, ValueEstimate, select

RESULTS = "by_policy"
"""Folder of the estimates, one file per policy."""

OVERESTIMATED = (
    "fqe: the world model overestimates %s on %s, seed %d: imagined value %.4g, the data says %.4g [%.4g, %.4g]"
)


class Fqe(Stage):
    """Estimate from the store alone what policies earn, by fitted Q evaluation (FQE), and select one per task.

    For tasks without a simulator, and to choose before anything is deployed. `estimates.csv` has a row per policy:
    algorithm, task, seed; value, low, high: discounted return from the data's first states and its 95% interval over
    resampled episodes; data: that of the recorded episodes; imagined: what the world model says of the policy, empty
    where it was not extracted from one. `selection.json` names the policy with the largest estimate by task.
    """

    Config = FqeConfig
    inputs = {"policies": Input("policies", many=True), "store": Input("store", facts=read_store_facts)}
    output_kind = "estimates"
    run_keys = ("seed",)
    not_hashed = ("fanout",)
    calls = ("policies",)
    config: FqeConfig

    def check_machine(self) -> None:
        self.config.fanout.check_machine(key="fqe.fanout")

    def run(self, context: Context) -> str:
        import pandas as pd

        from .job import estimate_policies

        members, folders = self._members(context)
        slugs = {spec.name: spec.slug for spec in read_table(context.input("store"))}
        program = MemberJobs(
            {
                "config": {**asdict(replace(self.config, algorithms=[])), "fanout": {}},
                "policies": {file: str(folder.absolute()) for file, folder in folders.items()},
            },
            members,
            partial(
                pack_by_task,
                per_job=self.config.fanout.per_job(len(members), 0),
                slug=lambda member: slugs[member["task"]],
            ),
            ["policies", "config.fanout"],
        )
        (found,) = fan_out_members([program], estimate_policies, context, self.config.fanout, hashed=[])
        for member, result in zip(members, found, strict=True):
            link(result / member["file"], context.folder / RESULTS / member["file"])
        estimates = [read_made(context.folder / RESULTS / member["file"], ValueEstimate) for member in members]
        pd.DataFrame(map(asdict, estimates)).to_csv(context.folder / ESTIMATES_FILE, index=False)
        paths = {(one["algorithm"], one["task"], one["seed"]): folders[one["file"]] for one in members}
        selected = select(estimates)
        write_json(
            context.folder / SELECTION_FILE,
            {
                task: {**asdict(one), "folder": str(paths[one.algorithm, task, one.seed])}
                for task, one in selected.items()
            },
        )
        for one in estimates:
            if one.overestimated:
                context.log.warning(
                    OVERESTIMATED, one.algorithm, one.task, one.seed, one.imagined, one.value, one.low, one.high
                )
        chosen = [one.algorithm for one in selected.values()]
        counts = ", ".join(f"{name} on {counted(chosen.count(name), 'task')}" for name in dict.fromkeys(chosen))
        return f"{counted(len(estimates), 'policy', 'policies')} estimated; selected: {counts}"

    def _members(self, context: Context) -> tuple[list[dict[str, Any]], dict[str, Path]]:
        """One member per policy, those of a task side by side so that a process reads its data once; and the folder of
        each by its file.

        Raises:
            ConfigError: there is no policy of the algorithms that are set, or the store is of other tasks.
        """
        store = context.input("store")
        specs = {spec.name: spec for spec in read_table(store)}
        data = data_digests(store)
        members: list[dict[str, Any]] = []
        folders: dict[str, Path] = {}
        unfit: dict[str, list[str]] = {}
        known = set()
        for artifact in context.inputs["policies"]:
            index = PolicyIndex.read(artifact)
            contents = index.contents()
            known |= {entry["algorithm"] for entry in index.entries}
            widths = {task.name: (task.observation_dim, task.action_dim) for task in index.tasks}
            for entry in index.entries:
                algorithm, task = entry["algorithm"], entry["task"]
                if self.config.algorithms and algorithm not in self.config.algorithms:
                    continue
                folder = artifact / entry["path"]
                if task not in specs:
                    unfit.setdefault(f"the store has no data of {task}", []).append(algorithm)
                elif widths[task] != (specs[task].observation_dim, specs[task].action_dim):
                    raise ConfigError(
                        f"fqe: {folder} acts on {widths[task][0]} observation and {widths[task][1]} action columns of "
                        f"{task}, the store {store} has {specs[task].observation_dim} and {specs[task].action_dim}; "
                        "set inputs.store to the store that the policy is for"
                    )
                elif _plans(folder):
                    reason = "it plans at every step, which takes hours on recorded frames"
                    unfit.setdefault(reason, []).append(algorithm)
                else:
                    slug, seed = specs[task].slug, entry["seed"]
                    folders[file := f"{slug}.{algorithm}.{seed}.json"] = folder
                    policy = {"content": contents[entry["path"]], "imagined": entry.get("imagined_value")}
                    run = {"file": file, "algorithm": algorithm, "task": task, "seed": seed}
                    members.append({**run, **policy, "data": data[task]})
        for reason, algorithms in unfit.items():
            context.log.warning("fqe: left out %s: %s", ", ".join(dict.fromkeys(algorithms)), reason)
        if missing := [name for name in self.config.algorithms if name not in known]:
            raise ConfigError(
                f"fqe.algorithms: no policy of {', '.join(missing)}; there are policies of: {', '.join(sorted(known))}"
            )
        if not members:
            raise StageError("fqe: none of the policies can be estimated from this store; see the warnings above")
        order = list(specs)
        return sorted(members, key=lambda member: order.index(member["task"])), folders


def _plans(folder: Path) -> bool:
    """Whether the policy plans at every step."""
    kind = read_json(folder / "policy.json", CheckpointError)["kind"]
    return hasattr(load("policies", kind, object), "begin")
