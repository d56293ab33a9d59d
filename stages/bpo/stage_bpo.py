"""The stage bpo."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datasets.facts import read_store_facts
from ...datasets.tables import check_same_tables, find_names, names_in_tables
from ...pipeline.errors import CheckpointError, ConfigError
from ...pipeline.jobs.fanout import MemberJobs, fan_out_members, pack_by_task
from ...pipeline.stage import Context, Input, Stage
from ...pipeline.wording import counted
from ..training.config import check_loggers_installed
from ..world_model.facts import read_model_facts
from .config import BpoStageConfig
from .gather import gather_finished

if TYPE_CHECKING:
    from ...datasets.store import TaskStore
    from ..sequence_model.networks import SequenceModel


class Bpo(Stage):
    """Train policies by backpropagation through a world model (BPO).

    The model is a frozen sequence model; tasks with a differentiable simulator can use the simulator instead. There is
    one policy per task and seed. Finished tasks are kept if the stage is interrupted.
    """

    Config = BpoStageConfig
    inputs = {
        "world_model": Input("world_model", optional=True, facts=read_model_facts),
        "store": Input("store", facts=read_store_facts),
    }
    output_kind = "policies"
    algorithms = ("bpo",)
    not_hashed = ("log_every", "loggers", "fanout")
    config: BpoStageConfig

    def check_machine(self) -> None:
        self.config.fanout.check_machine(key="bpo.fanout")
        check_loggers_installed(self.config, "bpo")

    def check_input(self, name: str, folder: Path, facts: Any) -> None:
        if name == "store" and facts is not None:
            find_names(facts.tasks, self.config.tasks, folder, "store")
        if name != "world_model" or facts is None or "model" not in self.config.gradients:
            return
        facts.check_single("bpo", folder)
        facts.check_predicts("observations", "bpo", folder)
        facts.check_horizon(self.config.bpo.horizon, "bpo.bpo.horizon", folder)
        if self.config.bpo.reward == "learned" and not facts.rewards:
            raise ConfigError(
                f"bpo.bpo.reward is learned, but the world model in {folder} has no reward head; set "
                "pretrain.sequence.reward_head=true"
            )

    def check_inputs(self, inputs: Mapping[str, Sequence[Any]]) -> None:
        (data,), model = inputs["store"], next(iter(inputs["world_model"]), None)
        if data is not None:
            names = names_in_tables(self.config.tasks, data.tasks) or data.tasks
            self._check_tasks(names, rewards=model is None or model.rewards)

    def _check_tasks(self, names: Sequence[str], *, rewards: bool) -> None:
        from ...datasets.tasks import SIMULATED, task_spec

        config = self.config
        others = [name for name in names if name.startswith(SIMULATED) and not name.startswith("myriad/")]
        asked = "bpo.gradients has simulator" if "simulator" in config.gradients else ""
        asked = asked or ("bpo.bpo.reward is simulator" if config.bpo.reward == "simulator" else "")
        if asked and others:
            raise ConfigError(
                f"{asked}, but {', '.join(others)} has no differentiable simulator; tasks of the suite myriad have "
                "one. Use bpo.gradients=[model] bpo.bpo.reward=learned, or name tasks in bpo.tasks"
            )
        if others and not rewards:
            raise ConfigError(
                f"{', '.join(others)} has no differentiable simulator, and the model has no reward head; set "
                "pretrain.sequence.reward_head=true, or name tasks of the suite myriad in bpo.tasks"
            )
        for name in names:
            if not name.startswith("myriad/"):
                continue
            length = task_spec(name).episode_length
            if config.bpo.horizon > length:
                raise ConfigError(
                    f"bpo.bpo.horizon is {config.bpo.horizon}, but episodes of task {name!r} have {length} steps; "
                    f"use at most {length}"
                )

    def run(self, context: Context) -> str:
        from ...datasets.store import TaskStore, data_digests
        from ..world_model.facts import held_out_share
        from .job import optimisation, train_policies

        config, folder = self.config, context.input("store")
        store = TaskStore.open(folder)
        by_model = "model" in config.gradients
        model = _load_model(context, store) if by_model else None
        held_out = 0.0 if model is None else held_out_share(context.input("world_model")) or 0.0
        names = find_names(store.table.names, config.tasks, folder, "store")
        units = list(itertools.product(names, config.gradients))
        # Everything that can be refused is, before the first update.
        for name, gradient in units:
            optimisation(config, store.rows_of(name), model, gradient, [0], held_out)
        of_job = dataclasses.replace(config, tasks=[], seeds=1, gradients=["model"] if by_model else ["simulator"])
        settings = {**dataclasses.asdict(of_job), "fanout": {}}
        data = data_digests(folder)
        not_hashed = [f"config.{key}" for key in self.not_hashed]
        seeds = [{"seed": seed} for seed in range(config.seeds)]

        def program(name: str, gradient: str) -> MemberJobs:
            payload = {"task": name, "gradient": gradient, "config": settings, "data": data[name]}
            label, per_job = f"{gradient}.{store.table.spec_of(name).slug}", config.fanout.policies_per_job
            return MemberJobs(payload, seeds, lambda own: pack_by_task(own, per_job, lambda one: label), not_hashed)

        programs = list(itertools.starmap(program, units))
        hashed = ["world_model"] if by_model else []
        found = fan_out_members(programs, train_policies, context, config.fanout, hashed=hashed)
        gather_finished(context.folder, store.table, [dict(enumerate(results)) for results in found])
        return (
            f"{counted(len(units) * config.seeds, 'policy', 'policies')} for {counted(len(names), 'task')}, "
            f"{config.iterations:,} updates each"
        )


def _load_model(context: Context, store: TaskStore) -> SequenceModel:
    from ..sequence_model.kinds import load_model

    folder = context.optional_input("world_model")
    if folder is None:
        raise CheckpointError(
            "bpo.gradients has `model`, but the run has no world model: run pretrain first, set "
            "inputs.world_model=RUN/pretrain, or set bpo.gradients=[simulator]"
        )
    model = load_model(folder)
    check_same_tables(model.table, store.table, context)
    return model
