"""A job of the stage bpo: policies of one task by one gradient, trained as one program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...datasets.store import TaskRows, TaskStore
from ...pipeline.artifact import write_json
from ...pipeline.config.schema import build
from ...pipeline.jobs.job import JobContext
from ..policy.policy_index import policy_entry
from ..sequence_model.dynamics import Dynamics, ModelDynamics, SimulatorDynamics
from ..sequence_model.kinds import load_model
from ..sequence_model.losses import observation_statistics
from ..sequence_model.networks import SequenceModel
from ..training.loggers import logging_rows
from ..world_model.facts import held_out_share
from .bpo import PolicyOptimisation, imagined_horizon, return_scale, start_observations
from .config import FINISHED_FILE, BpoStageConfig, algorithm_name
from .policy import StatePolicy


def train_policies(payload: Mapping[str, Any], context: JobContext) -> None:
    """Train the members; writes their policies, and FINISHED_FILE with their index entries and curves.

    Args:
        payload: task, gradient, members (seed of each), data, config (a BpoStageConfig's dict).
    """
    config: BpoStageConfig = build(BpoStageConfig, dict(payload["config"]), "bpo")
    torch.set_num_threads(context.threads)
    rows = TaskStore.open(context.inputs["store"]).rows_of(payload["task"])
    model, held_out = None, 0.0
    if "world_model" in context.inputs and "model" in config.gradients:
        model = load_model(context.inputs["world_model"])
        held_out = held_out_share(context.inputs["world_model"]) or 0.0
    seeds = [member["seed"] for member in payload["members"]]
    trained = optimisation(config, rows, model, payload["gradient"], seeds, held_out)
    algorithm = algorithm_name(payload["gradient"], None if model is None else model.config.kind)
    curves: list[dict[str, Any]] = []
    with (
        context.progress(f"{algorithm} {trained.spec.name}", total=config.iterations) as progress,
        logging_rows(config.loggers, context, config) as log,
    ):
        for done in range(1, config.iterations + 1):
            metrics = trained.update(done - 1)
            progress.advance(1)
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
                    for m, seed in enumerate(seeds)
                ]
                log(curves[-len(seeds) :])
    policies = []
    imagined, noise = trained.imagined_return().tolist(), trained.gradient_noise().tolist()
    for m, seed in enumerate(seeds):
        trained_by = {"algorithm": algorithm, "seed": seed}
        policy = StatePolicy.from_member(trained.policy, m, trained.spec, config.bpo.units, trained_by)
        facts = {"imagined_return": imagined[m], "gradient_noise": noise[m], "horizon": trained.horizon}
        entry = policy_entry(algorithm, trained.spec, seed, **facts)
        policy.save(context.folder / entry["path"])
        policies.append(entry)
    write_json(context.folder / FINISHED_FILE, {"policies": policies, "curves": curves})


def optimisation(
    config: BpoStageConfig,
    rows: TaskRows,
    model: SequenceModel | None,
    gradient: str,
    seeds: Sequence[int],
    held_out: float,
) -> PolicyOptimisation:
    """The policies of a task before their first update.

    Raises:
        ConfigError: the task, its data or the model do not suit the settings.
    """
    spec = rows.spec
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
        list(seeds),
        horizon,
        config.iterations,
        config.bpo,
        config.seed,
    )
