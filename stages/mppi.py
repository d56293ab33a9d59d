"""mppi: policies that plan through the frozen world model at every decision, as TD-MPC2 does. Nothing is trained; the
time is spent when they are evaluated."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..pipeline.errors import ConfigError
from ..pipeline.seeding import derive_seed
from ..pipeline.stage import Context, Input, Stage
from .pretrain import PretrainConfig
from .world_model.planner_config import PlannerConfig, check_can_plan

ALGORITHM = "tdmpc2_plan"


@dataclass(frozen=True)
class MppiConfig:
    """Which planners are made, and how they plan."""

    planner: PlannerConfig = field(default_factory=PlannerConfig)
    """Sampling and refitting."""
    algorithms: list[str] = field(default_factory=lambda: [ALGORITHM])
    """tdmpc2_plan, the only one."""
    tasks: list[str] = field(default_factory=list)
    """Tasks of the world model to plan for; all of them where empty."""
    seeds: int = 2
    """Planners per task, which differ in their random numbers and in the episodes that they are evaluated on."""
    seed: int = 0
    """Base of all randomness of the planners."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"mppi.seeds must be at least 1, found {self.seeds}")
        if unknown := sorted(set(self.algorithms) - {ALGORITHM}):
            raise ConfigError(f"mppi.algorithms: unknown {unknown}, this stage has: {ALGORITHM}")


class Mppi(Stage):
    """One planner per task and seed; all of them share one copy of the world model in this artifact."""

    Config = MppiConfig
    inputs = {"world_model": Input("world_model")}
    output_kind = "policies"
    algorithms = (ALGORITHM,)
    config: MppiConfig

    def check_input(self, name: str, folder: Path, maker: Any) -> None:
        if isinstance(maker, PretrainConfig):
            model = maker.model.complete()
            check_can_plan(model.num_q, model.dynamics, "the world model that stage pretrain is to make")
        elif (path := folder / "model.json").is_file():
            stored = json.loads(path.read_text())
            check_can_plan(stored.get("num_q"), stored.get("dynamics", "step"), f"the world model in {folder}")

    def run(self, context: Context) -> str:
        from .world_model.networks import WorldModel
        from .world_model.planner import PlannerPolicyConfig, relative_folder, world_model_digest

        config = self.config
        source = context.input("world_model")
        model = WorldModel.load(source, frozen=False)
        check_can_plan(model.config.num_q, model.config.dynamics, f"the world model in {source}")
        names = config.tasks or list(model.table.names)
        specs = [model.table[model.table.id_of(name)] for name in names]
        shared = context.folder / "world_model"
        model.save(shared)
        digest = world_model_digest(shared)
        entries: list[dict[str, Any]] = []
        for spec in specs:
            for seed in range(config.seeds):
                trained_by = {"algorithm": ALGORITHM, "seed": seed}
                path = Path(ALGORITHM) / spec.slug / f"seed_{seed}"
                PlannerPolicyConfig(
                    kind="planner",
                    task=spec.to_dict(),
                    world_model=relative_folder(shared, context.folder / path),
                    world_model_digest=digest,
                    planner=dataclasses.asdict(config.planner),
                    noise_seed=derive_seed("mppi", config.seed, spec.name, seed),
                    trained_by=trained_by,
                ).save(context.folder / path)
                entries.append({**trained_by, "task": spec.name, "path": path.as_posix()})
        index = {"tasks": [task.to_dict() for task in model.table], "policies": entries}
        (context.folder / "policies.json").write_text(json.dumps(index, indent=1))
        return f"{len(entries)} planners for {len(specs)} tasks"
