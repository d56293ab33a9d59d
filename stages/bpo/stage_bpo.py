"""The stage bpo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datasets.facts import read_store_facts
from ...pipeline.artifact import write_json
from ...pipeline.errors import CheckpointError, ConfigError
from ...pipeline.reading import read_made
from ...pipeline.stage import Context, Input, Stage
from ...pipeline.wording import counted
from ..policy.policy_index import policy_entry, write_index
from ..world_model.facts import read_model_facts
from .config import BpoStageConfig

if TYPE_CHECKING:
    from ...datasets.store import TaskRows, TaskStore
    from ..sequence_model.networks import SequenceModel
    from .bpo import PolicyOptimisation


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
    run_keys = ("seeds", "seed")
    not_hashed = ("log_every",)
    config: BpoStageConfig

    def check_input(self, name: str, folder: Path, facts: Any) -> None:
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
            self._check_tasks(self.config.tasks or data.tasks, rewards=model is None or model.rewards)

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
        import pandas as pd
        import torch

        from ...datasets.store import TaskStore
        from ..world_model.facts import held_out_share

        config = self.config
        torch.set_num_threads(context.threads)
        store = TaskStore.open(context.input("store"))
        model = _load_model(context, store) if "model" in config.gradients else None
        names = config.tasks or list(store.table.names)
        units = [(name, gradient) for name in names for gradient in config.gradients]
        held_out = 0.0 if model is None else held_out_share(context.input("world_model")) or 0.0
        # Everything that can be refused is, before the first update.
        plans = [self._plan(store.rows_of(name), model, gradient, held_out) for name, gradient in units]
        total = config.iterations * len(units)
        entries, curves = [], []
        with context.progress("bpo", total=total) as progress:
            for (name, gradient), trained in zip(units, plans, strict=True):
                algorithm = f"bpo_{gradient}" if model is None or gradient != "model" else f"bpo_{model.config.kind}"
                progress.note(f"{algorithm} {name}")
                finished = _finish_one(context, trained, algorithm, config, progress)
                entries += finished["policies"]
                curves += finished["curves"]
        write_index(context.folder, store.table, entries)
        pd.DataFrame(curves).to_csv(context.folder / "training.csv", index=False)
        for record in context.folder.glob("finished_*.json"):
            record.unlink()
        return (
            f"{counted(len(entries), 'policy', 'policies')} for {counted(len(names), 'task')}, "
            f"{config.iterations:,} updates each"
        )

    def _plan(self, rows: TaskRows, model: SequenceModel | None, gradient: str, held_out: float) -> PolicyOptimisation:
        from ..sequence_model.dynamics import Dynamics, ModelDynamics, SimulatorDynamics
        from ..sequence_model.losses import observation_statistics
        from .bpo import PolicyOptimisation, imagined_horizon, return_scale, start_observations

        config, spec = self.config, rows.spec
        dynamics: Dynamics
        if gradient == "model":
            assert model is not None
            dynamics = ModelDynamics(model, spec.name, config.bpo.reward)
            horizon = imagined_horizon(config.bpo, spec, model)
            starts = start_observations(rows, horizon, config.starts_per_task, config.seed, held_out)
        else:
            dynamics, starts = SimulatorDynamics(spec), None
            horizon = imagined_horizon(config.bpo, spec, None)
        return PolicyOptimisation(
            dynamics,
            spec,
            starts,
            observation_statistics(rows, spec.observation_dim, held_out),
            return_scale(rows),
            list(range(config.seeds)),
            horizon,
            config.iterations,
            config.bpo,
            config.seed,
        )


def _load_model(context: Context, store: TaskStore) -> SequenceModel:
    from ...datasets.tables import check_same_tables
    from ..sequence_model.kinds import load_model

    folders = context.inputs["world_model"]
    if not folders:
        raise CheckpointError(
            "bpo.gradients has `model`, but the run has no world model: run pretrain first, set "
            "inputs.world_model=RUN/pretrain, or set bpo.gradients=[simulator]"
        )
    model = load_model(folders[0])
    check_same_tables(model.table, store.table, context)
    return model


def _finish_one(
    context: Context, trained: PolicyOptimisation, algorithm: str, config: BpoStageConfig, progress: Any
) -> dict[str, Any]:
    """Train the policies of one task and write them, or read what an interrupted attempt had finished."""
    from .policy import StatePolicy

    record = context.folder / f"finished_{algorithm}_{trained.spec.slug}.json"
    if record.is_file():
        progress.advance(config.iterations)
        return dict(read_made(record, dict[str, Any]))
    curves: list[dict[str, Any]] = []
    for iteration in range(config.iterations):
        metrics = trained.update(iteration)
        progress.advance(1)
        done = iteration + 1
        if done % config.log_every == 0 or done == config.iterations:
            values = {name: tensor.tolist() for name, tensor in metrics.items()}
            curves += [
                {
                    "iteration": done,
                    "algorithm": algorithm,
                    "task": trained.spec.name,
                    "seed": seed,
                    "imagined_reward": values["imagined_return"][m] / trained.horizon,
                    **{name: column[m] for name, column in values.items()},
                }
                for m, seed in enumerate(trained.seeds)
            ]
    policies = []
    imagined, noise = trained.imagined_return().tolist(), trained.gradient_noise().tolist()
    for m, seed in enumerate(trained.seeds):
        trained_by = {"algorithm": algorithm, "seed": seed}
        policy = StatePolicy.from_member(trained.policy, m, trained.spec, config.bpo.units, trained_by)
        facts = {"imagined_return": imagined[m], "gradient_noise": noise[m], "horizon": trained.horizon}
        entry = policy_entry(algorithm, trained.spec, seed, **facts)
        policy.save(context.folder / entry["path"])
        policies.append(entry)
    finished = {"policies": policies, "curves": curves}
    write_json(record, finished)
    return finished
