"""The stage mppi."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from ...datasets.tables import find_names, find_tasks
from ...pipeline.errors import CheckpointError
from ...pipeline.seeding import derive_seed
from ...pipeline.stage import Context, Input, Stage
from ...pipeline.wording import counted
from ..policy.policy_index import policy_entry, write_index
from ..world_model.facts import ModelFacts, read_model_facts
from .config import ALGORITHMS, LATENT_ALGORITHM, MPPI, STATE_ALGORITHMS, MppiConfig, check_can_plan


class Mppi(Stage):
    """Create policies that plan through the frozen world model at every step (MPPI, CEM).

    tdmpc2_plan plans through a latent model as TD-MPC2 does; mppi and cem plan through a model of observations. Nothing
    is trained; planning happens in evaluate. All planners share one copy of the model.
    """

    Config = MppiConfig
    inputs = {"world_model": Input("world_model", facts=read_model_facts)}
    output_kind = "policies"
    algorithms = ALGORITHMS
    config: MppiConfig

    def check_input(self, name: str, folder: Path, facts: ModelFacts | None) -> None:
        if facts is None:
            return
        facts.check_single("mppi", folder)
        observations = facts.predicts == "observations"
        known = STATE_ALGORITHMS if observations else [LATENT_ALGORITHM]
        for algorithm in self.config.algorithms:
            if algorithm not in known:
                raise CheckpointError(
                    f"mppi.algorithms has {algorithm}, but the world model in {folder} predicts {facts.predicts}, "
                    f"which supports {' and '.join(known)}; pretrain with pretrain.kind="
                    f"{'latent' if observations else 'sequence'}, or remove {algorithm} from `algorithms`"
                )
        if not observations:
            check_can_plan(facts.values, facts.dynamics, f"the world model in {folder}")
        if facts.tasks is not None:
            find_names(facts.tasks, self.config.tasks, folder)

    def run(self, context: Context) -> str:
        from ..sequence_model.kinds import load_model
        from ..sequence_model.networks import SequenceModel
        from ..world_model.networks import WorldModel
        from .planner import Planner, PlannerPolicyConfig, relative_folder, world_model_digest

        config = self.config
        source = context.input("world_model")
        facts = read_model_facts(source)
        self.check_input("world_model", source, facts)
        model: WorldModel | SequenceModel
        model = load_model(source) if facts.predicts == "observations" else WorldModel.load(source, frozen=False)
        specs = find_tasks(model.table, config.tasks, source)
        shared = context.folder / "world_model"
        model.save(shared)
        digest = world_model_digest(shared)
        if isinstance(model, SequenceModel):  # whose tasks or horizon may not do
            for spec in specs:
                Planner(model, spec, config.planner_of(MPPI), 0)
        entries: list[dict[str, Any]] = []
        for algorithm, spec in itertools.product(config.algorithms, specs):
            for seed in range(config.seeds):
                trained_by = {"algorithm": algorithm, "seed": seed}
                entry = policy_entry(algorithm, spec, seed)
                folder = context.folder / entry["path"]
                PlannerPolicyConfig(
                    kind="planner",
                    task=spec.to_dict(),
                    world_model=relative_folder(shared, folder),
                    world_model_digest=digest,
                    planner=dataclasses.asdict(config.planner_of(algorithm)),
                    noise_seed=derive_seed("mppi", config.seed, spec.name, seed),
                    trained_by=trained_by,
                ).save(folder)
                entries.append(entry)
        write_index(context.folder, model.table, entries)
        return f"{counted(len(entries), 'planner')} for {counted(len(specs), 'task')}"
