"""The stage extract."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datasets.facts import DataFacts, read_store_facts
from ...datasets.tables import check_common_tasks, check_entries, find_names, names_in_tables
from ...pipeline.artifact import link
from ...pipeline.errors import CheckpointError, ConfigError
from ...pipeline.jobs.fanout import MemberJobs, fan_out_members, job_names
from ...pipeline.reading import decode, read_made, reading_made
from ...pipeline.stage import Context, Input, Stage
from ...pipeline.wording import counted
from ..policy.policy_index import PolicyEntry, write_costs, write_index
from ..training.config import check_loggers_installed
from ..world_model.facts import ModelFacts, models_by_task, read_model_facts
from .config import ALGORITHMS, DEFAULT_ANCHOR, ExtractConfig

if TYPE_CHECKING:
    from ...datasets.schema import TaskTable
    from .program import PolicySpec


@dataclass(frozen=True)
class _Plan:
    """What is extracted from one model."""

    folder: Path
    table: TaskTable
    behaviours: Mapping[str, str]
    """By task, how its data was made."""
    members: Sequence[PolicySpec]
    per_job: Callable[[int], int]
    """Members of a job, for this many in all."""


class Extract(Stage):
    """Extract policies from the frozen world model: by first-order gradients (pwm), stochastic value gradients (svg) or
    behaviour cloning (bc).

    All tasks and seeds train as one program. bc uses the same encoder, data and number of updates.
    """

    Config = ExtractConfig
    inputs = {
        "world_model": Input("world_model", facts=read_model_facts),
        "store": Input("store", optional=True, facts=read_store_facts),
        "starts": Input("starts", optional=True),
    }
    output_kind = "policies"
    algorithms = ALGORITHMS
    not_hashed = (
        "first_order.compile", "log_every", "loggers", "evaluate_every", "evaluation_episodes", "checkpoint_every",
        "groups", "accelerator", "fanout",
    )  # fmt: skip
    config: ExtractConfig

    def check(self) -> None:
        fanout = self.config.fanout
        if any(self.config.uncertainty) and "pwm" not in self.config.algorithms:
            raise ConfigError(
                f"extract.uncertainty={self.config.uncertainty} is a penalty of pwm, but algorithms is "
                f"[{','.join(self.config.algorithms)}]; add pwm, or remove extract.uncertainty"
            )
        fanout.check_gpus(self.config.accelerator, "extract.accelerator")
        if not fanout.is_local and not (fanout.policies_per_job or fanout.memory_gb):
            raise ConfigError(
                "set extract.fanout.policies_per_job or extract.fanout.memory_gb: the memory of the machines of "
                f"executor={fanout.executor} is not known here"
            )

    def check_input(self, name: str, folder: Path, facts: ModelFacts | DataFacts | None) -> None:
        if isinstance(facts, DataFacts):
            self._check_windows(facts, names_in_tables(self.config.tasks, facts.tasks), folder)
        if not isinstance(facts, ModelFacts):
            return
        facts.check_predicts("latents", "extract", folder)
        for name, part in {"pwm": "first_order", "svg": "svg"}.items():
            if name in self.config.algorithms:
                facts.check_horizon(getattr(self.config, part).horizon, f"extract.{part}.horizon", folder)
        if facts.tasks is not None:
            names = find_names(facts.tasks, self.config.tasks, folder)
            check_entries("extract.task_anchor", self.config.task_anchor, names, EXTRACTED)

    def check_inputs(self, inputs: Mapping[str, Sequence[Any]]) -> None:
        needy = [name for name in self.config.algorithms if name in NEED_DATA]
        if needy and not inputs["store"]:
            raise ConfigError(
                f"extract.algorithms has {' and '.join(needy)}: {'; '.join(NEED_DATA[name] for name in needy)}. This "
                "run has no store, only start frames, from which pwm can learn: algorithms=[pwm]. Or give the data: "
                "inputs.store=PATH"
            )

    def _check_windows(self, data: DataFacts, tasks: Sequence[str], folder: Path) -> None:
        if "svg" in self.config.algorithms:
            data.check_windows(self.config.svg.n_step, "extract.svg.n_step", tasks, folder)

    def check_machine(self) -> None:
        self.config.fanout.check_machine(self.config.accelerator, "extract.accelerator")
        check_loggers_installed(self.config, "extract")

    def run(self, context: Context) -> str:
        from ...datasets.schema import TaskTable, read_table
        from .job import payload_of, train_members

        config, root = self.config, context.input("world_model")
        if models := models_by_task(root):  # each new task has a model of its own; the members of a job share one
            wanted = find_names(list(models), config.tasks, root)
            plans = [self._plan(models[task], [task], context) for task in wanted]
            table = TaskTable([plan.table.spec_of(task) for plan, task in zip(plans, wanted, strict=True)])
        else:
            names = config.tasks and find_names(read_table(root).names, config.tasks, root)
            plans = [self._plan(root, names, context)]
            table = plans[0].table
        slugs = {task.name: task.slug for task in table}
        programs = [
            MemberJobs(
                payload_of(config, plan.folder.relative_to(root)),
                [dataclasses.asdict(member) for member in plan.members],
                partial(_pack, per_job=plan.per_job, slugs=slugs),
                [f"config.{name}" for name in self.not_hashed],
            )
            for plan in plans
        ]
        results = fan_out_members(
            programs, train_members, context, config.fanout, cpus=config.cores, accelerator=config.accelerator,
            hashed=["world_model"],
        )  # fmt: skip
        found = {
            (member.algorithm, member.task, member.seed): folder
            for plan, folders in zip(plans, results, strict=True)
            for member, folder in zip(plan.members, folders, strict=True)
        }
        members = plan_members(config, {task: how for plan in plans for task, how in plan.behaviours.items()})
        return _gather(found, members, table, config, context)

    def _plan(self, folder: Path, names: Sequence[str], context: Context) -> _Plan:
        """What is extracted from the model in `folder`: for the tasks `names`, or all where it is empty."""
        from ...datasets.schema import read_table
        from ...pipeline.saved_config import read_config
        from ..world_model.config import WorldModelConfig
        from .packing import policies_per_job

        config = self.config
        model = read_config(folder, "model", WorldModelConfig)
        table = read_table(folder)
        behaviours = self._behaviours(table, folder, names, context)
        anchors = {task: weight for task, weight in config.task_anchor.items() if not names or task in names}
        data = self._digests(behaviours, context)
        planned = plan_members(dataclasses.replace(config, task_anchor=anchors), behaviours)
        members = [dataclasses.replace(member, data=data.get(member.task, "")) for member in planned]
        model_bytes = (folder / "model.safetensors").stat().st_size

        def per_job(count: int) -> int:
            estimate = policies_per_job(count, config, model, model_bytes, table.action_dim, context.workers)
            return config.fanout.policies_per_job or estimate

        return _Plan(folder, table, behaviours, members, per_job)

    def _behaviours(self, table: TaskTable, model: Path, wanted: Sequence[str], context: Context) -> dict[str, str]:
        """The tasks to extract for, with how the data was made that imagination starts from.

        Raises:
            CheckpointError: model and data hold different tasks under these names, or there is nowhere to start.
        """
        from ...datasets.store import TaskStore
        from ..world_model.start_frames import saved_behaviours, saved_folder

        if (folder := context.optional_input("store")) is not None:
            store = TaskStore.open(folder)
            names = check_common_tasks(table, store.table, wanted, context)
            self._check_windows(read_store_facts(folder), names, folder)
            return {name: store.rows_of(name).summary.behaviour for name in names}
        given = {name: folders[0] for name, folders in context.inputs.items() if folders} | {"world_model": model}
        saved = saved_behaviours(saved_folder(given))
        names = list(wanted) or [name for name in table.names if name in saved]
        if missing := [name for name in names if name not in saved]:
            raise CheckpointError(
                f"{saved_folder(given)} has no start frames of {', '.join(missing)}, only of {', '.join(saved)}"
            )
        context.log.info("extract: no store; imagined rollouts start from the frames saved in %s", saved_folder(given))
        return {name: saved[name] for name in names}

    def _digests(self, names: Iterable[str], context: Context) -> dict[str, str]:
        """A digest of what policies of each task learn from; empty where it is saved with the world model."""
        from ...datasets.store import data_digests
        from ..world_model.start_frames import STARTS, frame_digests

        if (store := context.optional_input("store")) is not None:
            return data_digests(store)
        starts = context.optional_input(STARTS)
        return {} if starts is None else frame_digests(starts, names)


def _pack(
    members: Sequence[Mapping[str, Any]], per_job: Callable[[int], int], slugs: Mapping[str, str]
) -> dict[str, list[dict[str, Any]]]:
    from .packing import pack
    from .program import PolicySpec

    parts = pack([PolicySpec(**one) for one in members], per_job(len(members)))
    names = job_names([[slugs[member.task] for member in part] for part in parts])
    return {name: list(map(dataclasses.asdict, part)) for name, part in zip(names, parts, strict=True)}


NEED_DATA = {
    "svg": "svg learns its critics from the transitions of a store",
    "bc": "bc clones the actions of a store",
}
"""Algorithms that start frames are not enough for, with the reason."""

EXTRACTED = "policies are extracted for"
"""Says what the tasks in an error are."""


def plan_members(config: ExtractConfig, behaviours: Mapping[str, str]) -> list[PolicySpec]:
    """Every (algorithm, task, anchor, seed), those that imagine first.

    Args:
        behaviours: how the data was made, of each task to extract for.
    Raises:
        ConfigError: an anchor for a task that is not extracted.
    """
    from .program import PolicySpec

    check_entries("extract.task_anchor", config.task_anchor, list(behaviours), EXTRACTED)
    members = []
    for objective in ("pwm", "svg"):
        penalties = config.uncertainty if objective == "pwm" else [0.0]
        for name, behaviour in behaviours.items() if objective in config.algorithms else ():
            weights = config.anchor or [DEFAULT_ANCHOR[behaviour]]
            if name in config.task_anchor:
                weights = [config.task_anchor[name]]
            for weight, uncertainty in itertools.product(weights, penalties):
                algorithm = objective if len(weights) == 1 else f"{objective}@{weight:g}"
                algorithm += "" if len(penalties) == 1 else f"@u{uncertainty:g}"
                members += [
                    PolicySpec(algorithm, name, seed, weight, True, uncertainty) for seed in range(config.seeds)
                ]
    if "bc" in config.algorithms:
        members += [PolicySpec("bc", name, seed, 1.0, False) for name in behaviours for seed in range(config.seeds)]
    return members


def _gather(
    found: Mapping[tuple[str, str, int], Path],
    members: list[PolicySpec],
    table: TaskTable,
    config: ExtractConfig,
    context: Context,
) -> str:
    """Put the policies of all jobs into this artifact, with their index and the curves, in an order that does not
    depend on how they were split.

    Args:
        found: the result that holds each member, by algorithm, task and seed.
    """
    import pandas as pd

    from .job import CURVES, ENTRIES

    entries, curves = {}, []
    for job in dict.fromkeys(found.values()):
        with reading_made(job / ENTRIES):
            own = read_made(job / ENTRIES, list[dict[str, Any]])
            decode(list[PolicyEntry], own)
        for entry in own:
            identity = entry["algorithm"], entry["task"], entry["seed"]
            if found.get(identity) == job:
                link(job / entry["path"], context.folder / entry["path"])
                entries[identity] = entry
        rows = read_made(job / CURVES, list[dict[str, Any]])
        curves += [row for row in rows if found.get((row["algorithm"], row["task"], row["seed"])) == job]
    position = {(member.algorithm, member.task, member.seed): m for m, member in enumerate(members)}
    curves.sort(key=lambda row: (row["iteration"], position[row["algorithm"], row["task"], row["seed"]]))
    order = sorted(members, key=lambda m: (not m.imagines, table.id_of(m.task), m.algorithm, m.seed))
    identities = [(member.algorithm, member.task, member.seed) for member in order]
    listed = [entries[identity] for identity in identities]
    write_index(context.folder, table, listed)
    write_costs(context.folder, listed, [found[identity] for identity in identities])
    pd.DataFrame(curves).to_csv(context.folder / "training.csv", index=False)
    count = len({member.task for member in members})
    return (
        f"{counted(len(members), 'policy', 'policies')} for {counted(count, 'task')}, {config.iterations:,} iterations "
        "each"
    )
