"""extract: one policy per task and seed by first-order gradients through the frozen world model, and their
behaviour-cloning baseline from the same encoder, data and number of updates."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pipeline.errors import CheckpointError, ConfigError
from ..pipeline.stage import Context, Input, Stage
from .extraction.config import ALGORITHMS, FirstOrderConfig

if TYPE_CHECKING:
    from ..datasets.schema import TaskTable
    from ..datasets.store import TaskStore
    from .extraction.first_order import FirstOrderExtraction, Member
    from .extraction.groups import MemberGroups
    from .world_model.networks import WorldModel


@dataclass(frozen=True)
class ExtractConfig:
    """Which policies are extracted, and how."""

    first_order: FirstOrderConfig = field(default_factory=FirstOrderConfig)
    """Rollouts, critics and optimiser."""
    algorithms: list[str] = field(default_factory=lambda: list(ALGORITHMS))
    """pwm (first-order extraction) and bc (behaviour cloning at equal budget)."""
    tasks: list[str] = field(default_factory=list)
    """Tasks of the world model to extract for; all of them where empty."""
    seeds: int = 2
    """Policies per task and algorithm."""
    iterations: int = 500
    """Actor updates of each policy."""
    anchor: list[float] = field(default_factory=list)
    """Weight of the behaviour anchor |tanh(mean(z_0)) - a_0|^2 beside the normalised return. Empty takes each task's
    own from how its data was made: 0 for exploration, 1 for experts, policies and unknown data. Several weights make
    one policy each, scored as pwm@WEIGHT."""
    task_anchor: dict[str, float] = field(default_factory=dict)
    """Anchor weight by task, before both of the above."""
    uncertainty: list[float] = field(default_factory=lambda: [0.0])
    """Penalty on the model's disagreement where it is larger than on the data (pretrain.model.disagreement_heads), in
    units of the task's reward. Several weights make one policy each, scored as pwm@uWEIGHT."""
    starts_per_task: int = 16384
    """Dataset frames per task that are encoded as start latents."""
    log_every: int = 10
    """Iterations between logged numbers; reading them waits for the device."""
    checkpoint_every: int = 50
    """Iterations between checkpoints for resuming."""
    groups: int = 2
    """Groups that the policies are split into and trained side by side, a CPU core each; 1 on a GPU. Changes speed
    and float rounding, nothing else."""
    accelerator: str = "auto"
    """cpu, cuda, or auto."""
    seed: int = 0
    """Base of all randomness of this stage."""

    def __post_init__(self) -> None:
        for name in ("seeds", "iterations", "groups", "starts_per_task", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"extract.{name} must be at least 1, found {getattr(self, name)}")
        if unknown := sorted(set(self.algorithms) - set(ALGORITHMS)):
            raise ConfigError(f"extract.algorithms: unknown {unknown}, this stage has: {', '.join(ALGORITHMS)}")
        if not self.uncertainty or min([*self.anchor, *self.task_anchor.values(), *self.uncertainty], default=0) < 0:
            raise ConfigError("extract.anchor, task_anchor and uncertainty (one or more) must not be negative")


IMAGINED_EPISODES = 16
"""Episodes, from first frames of the data, over which the imagined return of a policy is averaged."""

DEFAULT_ANCHOR = {"exploration": 0.0, "expert": 1.0, "policy": 1.0, "unknown": 1.0}
"""Anchor weight by the behaviour that made the data. Narrow data without an anchor ends in exploiting the model's
errors (imagined return high, real return nil); wide data loses half its score to an anchor of 0.3."""


class Extract(Stage):
    """Policies for all tasks and seeds, trained as one program."""

    Config = ExtractConfig
    inputs = {"world_model": Input("world_model"), "store": Input("store")}
    output_kind = "policies"
    algorithms = ALGORITHMS
    config: ExtractConfig

    def run(self, context: Context) -> str:
        import torch

        from ..datasets.store import TaskStore
        from .extraction.first_order import FirstOrderExtraction
        from .extraction.groups import MemberGroups
        from .extraction.starts import encode_starts
        from .world_model.networks import WorldModel

        config = self.config
        torch.set_num_threads(context.threads)
        device = config.accelerator
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model = WorldModel.load(context.input("world_model")).to(device)
        store = TaskStore.open(context.input("store"))
        check_same_tables(model.table, store.table, context)
        names = config.tasks or list(model.table.names)
        members = plan_members(config, store, names)
        ids = [model.table.id_of(name) for name in names]
        with context.progress("encode start states", total=len(ids)) as progress:
            starts = encode_starts(
                model, store, ids, config.starts_per_task, IMAGINED_EPISODES, config.seed, lambda: progress.advance(1)
            )

        def build(part: list[Member]) -> FirstOrderExtraction:
            return FirstOrderExtraction(model, starts, part, config.first_order, config.iterations, config.seed)

        groups = MemberGroups(members, config.groups, build)
        curves = self._train(groups, context)
        return _publish(groups, model, config, curves, context)

    def _train(self, groups: MemberGroups, context: Context) -> list[dict[str, Any]]:
        """All iterations, from the last checkpoint on; returns the logged rows."""
        import torch

        config = self.config
        checkpoint = context.folder / "checkpoint.pt"
        first, curves = 0, []
        if checkpoint.is_file():
            state = torch.load(checkpoint, weights_only=True)
            groups.load_state_dict(state["groups"])
            first, curves = state["iteration"], state["curves"]
        with (
            context.progress("extract", total=config.iterations, completed=first) as progress,
            groups.running() as update,
        ):
            for iteration in range(first, config.iterations):
                metrics = update(iteration)
                done = iteration + 1
                progress.advance(1)
                if done % config.log_every == 0 or done == config.iterations:
                    for group, values in zip(groups.groups, metrics, strict=True):
                        group.check_finite(values, iteration)
                        curves += _rows(group, values, done)
                    if "imagined_reward" in metrics[0]:
                        progress.note(f"imagined reward {metrics[0]['imagined_reward'].mean():.3f} per decision")
                if done % config.checkpoint_every == 0 or done == config.iterations:
                    state = {"groups": groups.state_dict(), "iteration": done, "curves": curves}
                    partial = checkpoint.with_suffix(".partial")
                    torch.save(state, partial)
                    partial.replace(checkpoint)
        return curves


def check_same_tables(model: TaskTable, store: TaskTable, context: Context) -> None:
    """Raise a CheckpointError that shows both tables unless they are the same."""
    if model == store:
        return
    described = []
    for k in range(max(len(model), len(store))):
        left, right = (repr_task(table, k) for table in (model, store))
        described.append(f"  {k}: {left:<44} {right}{'' if left == right else '   <- differs'}")
    raise CheckpointError(
        f"the world model in {context.input('world_model')} and the store in {context.input('store')} "
        "have different task tables:\n"
        + f"  id {'world model':<42} store\n"
        + "\n".join(described)
        + "\nUse the store that the model was trained on, or pretrain on this one"
    )


def repr_task(table: TaskTable, k: int) -> str:
    """One task of a table in a few words."""
    if k >= len(table):
        return "-"
    return f"{table[k].name} (O={table[k].observation_dim}, A={table[k].action_dim})"


def plan_members(config: ExtractConfig, store: TaskStore, names: list[str]) -> list[Member]:
    """Every (algorithm, task, anchor, seed), those that imagine first.

    Raises:
        ConfigError: an anchor for a task that is not extracted.
    """
    from .extraction.first_order import Member

    for name in names:
        store.table.id_of(name)
    if unknown := sorted(set(config.task_anchor) - set(names)):
        raise ConfigError(f"extract.task_anchor names {unknown}, but policies are extracted for: {', '.join(names)}")
    members = []
    if "pwm" in config.algorithms:
        for name in names:
            behaviour = store.tasks[store.table.id_of(name)].summary.behaviour
            weights = config.anchor or [DEFAULT_ANCHOR[behaviour]]
            if name in config.task_anchor:
                weights = [config.task_anchor[name]]
            for weight, uncertainty in itertools.product(weights, config.uncertainty):
                algorithm = "pwm" if len(weights) == 1 else f"pwm@{weight:g}"
                algorithm += "" if len(config.uncertainty) == 1 else f"@u{uncertainty:g}"
                members += [Member(algorithm, name, seed, weight, True, uncertainty) for seed in range(config.seeds)]
    if "bc" in config.algorithms:
        members += [Member("bc", name, seed, 1.0, False) for name in names for seed in range(config.seeds)]
    return members


def _rows(extraction: FirstOrderExtraction, metrics: dict[str, Any], iteration: int) -> list[dict[str, Any]]:
    values = {name: tensor.tolist() for name, tensor in metrics.items()}
    return [
        {
            "iteration": iteration,
            "algorithm": member.algorithm,
            "task": member.task,
            "seed": member.seed,
            **{name: column[m] for name, column in values.items() if m < len(column)},
        }
        for m, member in enumerate(extraction.members)
    ]


def _publish(
    groups: MemberGroups,
    model: WorldModel,
    config: ExtractConfig,
    curves: list[dict[str, Any]],
    context: Context,
) -> str:
    """Write the policies, their index and the curves; drop the checkpoint."""
    import pandas as pd

    from .extraction.policy import LatentPolicy

    trained = []
    with context.progress("imagine whole episodes", total=len(groups.groups)) as progress:
        for group, imagined_returns in groups.imagined_returns():
            progress.advance(1)
            members = zip(group.members, imagined_returns.tolist(), strict=True)
            trained += [(member, group, m, imagined) for m, (member, imagined) in enumerate(members)]
    trained.sort(key=lambda one: (not one[0].imagines, model.table.id_of(one[0].task), one[0].algorithm, one[0].seed))
    entries = []
    for member, group, m, imagined in trained:
        task = model.table[model.table.id_of(member.task)]
        trained_by = {
            "algorithm": member.algorithm,
            "seed": member.seed,
            "anchor": member.anchor,
            "uncertainty": member.uncertainty,
        }
        path = Path(member.algorithm) / task.slug / f"seed_{member.seed}"
        networks = config.first_order.networks
        LatentPolicy.from_member(model, group.actor, m, task, networks, trained_by).save(context.folder / path)
        entries.append(
            {
                **trained_by,
                "task": member.task,
                "path": path.as_posix(),
                "imagined_return_per_step": imagined,
            }
        )
    index = {"tasks": [task.to_dict() for task in model.table], "policies": entries}
    (context.folder / "policies.json").write_text(json.dumps(index, indent=1))
    pd.DataFrame(curves).to_csv(context.folder / "training.csv", index=False)
    (context.folder / "checkpoint.pt").unlink()
    count = len({entry["task"] for entry in entries})
    return f"{len(entries)} policies for {count} tasks, {config.iterations} updates each"
