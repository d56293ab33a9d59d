"""The stage mppi."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from ...pipeline.errors import CheckpointError
from ...pipeline.reading import read_made
from ...pipeline.seeding import derive_seed
from ...pipeline.stage import Context, Input, Stage
from ...pipeline.wording import counted
from ..policy.policy_index import policy_entry, write_index
from ..pretrain.config import PretrainConfig
from .config import ALGORITHMS, LATENT_ALGORITHM, MPPI, STATE_ALGORITHMS, MppiConfig, check_can_plan


class Mppi(Stage):
    """Create policies that plan through the frozen world model at every step (MPPI, CEM).

    tdmpc2_plan plans through a latent model as TD-MPC2 does; mppi and cem plan through a model of observations. Nothing
    is trained; planning happens in evaluate. All planners share one copy of the model.
    """

    Config = MppiConfig
    inputs = {"world_model": Input("world_model")}
    output_kind = "policies"
    algorithms = ALGORITHMS
    run_keys = ("seeds", "seed", "algorithms")
    config: MppiConfig

    def check_input(self, name: str, folder: Path, maker: Any) -> None:
        if isinstance(maker, PretrainConfig):
            model, where = maker.model.complete(), "the world model of the stage pretrain"
            self._check(maker.world_model == "sequence", model.num_q, model.dynamics, where)
        elif (path := folder / "model.json").is_file():
            stored = read_made(path, dict[str, Any])
            num_q, dynamics = stored.get("num_q"), stored.get("dynamics", "step")
            self._check(False, num_q, dynamics, f"the world model in {folder}")
        elif (folder / "sequence_model.json").is_file():
            self._check(True, 0, "", f"the world model in {folder}")

    def _check(self, observations: bool, num_q: int, dynamics: str, where: str) -> None:
        """Raise a CheckpointError if an algorithm cannot plan with such a model."""
        for algorithm in self.config.algorithms:
            if observations != (algorithm in STATE_ALGORITHMS):
                kinds = ("sequence", "latent") if observations else ("latent", "sequence")
                known = STATE_ALGORITHMS if observations else [LATENT_ALGORITHM]
                raise CheckpointError(
                    f"mppi.algorithms has {algorithm}, but {where} is {kinds[0]}, which supports "
                    f"{' and '.join(known)}; pretrain with pretrain.world_model={kinds[1]}, or remove {algorithm} from "
                    "`algorithms`"
                )
        if not observations:
            check_can_plan(num_q, dynamics, where)

    def run(self, context: Context) -> str:
        from ..sequence_model.kinds import load_model
        from ..sequence_model.networks import SequenceModel
        from ..world_model.networks import WorldModel
        from .planner import Planner, PlannerPolicyConfig, relative_folder, world_model_digest

        config = self.config
        source = context.input("world_model")
        model: WorldModel | SequenceModel
        if (source / "sequence_model.json").is_file():
            model = load_model(source)
            self._check(True, 0, "", f"the world model in {source}")
        else:
            model = WorldModel.load(source, frozen=False)
            self._check(False, model.config.num_q, model.config.dynamics, f"the world model in {source}")
        names = config.tasks or list(model.table.names)
        specs = [model.table.spec_of(name) for name in names]
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
