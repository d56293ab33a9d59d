"""The stage dyna."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datasets.facts import DataFacts, read_store_facts
from ...pipeline.errors import ConfigError
from ...pipeline.seeding import derive_seed
from ...pipeline.stage import Context, Input, Stage
from ..policy.policy_index import PolicyIndex
from ..world_model.facts import read_model_facts
from .config import DynaConfig

if TYPE_CHECKING:
    from ...datasets.schema import Episode
    from ...datasets.store import TaskRows, TaskStore
    from ..sequence_model.dynamics import ModelDynamics
    from ..sequence_model.episodes import Episodes


class Dyna(Stage):
    """Write a store that adds generated episodes to the real ones (Dyna).

    A model of observations imagines short episodes from states of the data. Stages that learn from a store (mrq, powr,
    tabular) then learn from both. Returns, success rates and held-out episodes are those of the real data; nothing is
    generated from episodes that the model's training held out.
    """

    Config = DynaConfig
    inputs = {
        "store": Input("store", facts=read_store_facts),
        "world_model": Input("world_model", facts=read_model_facts),
        "policies": Input("policies", optional=True),
    }
    output_kind = "store"
    calls = ("policies",)
    config: DynaConfig

    def check_input(self, name: str, folder: Path, facts: Any) -> None:
        if name == "world_model" and facts is not None:
            facts.check_single("dyna", folder)
            facts.check_predicts("observations", "dyna", folder)

    def promise(self, inputs: Mapping[str, Sequence[Any]]) -> DataFacts | None:
        facts: DataFacts | None
        (facts,) = inputs["store"]
        return facts

    def run(self, context: Context) -> str:
        import torch

        from ...datasets.store import TaskStore, TaskWriter, finish_store
        from ...datasets.tables import check_same_tables
        from ..sequence_model.dynamics import ModelDynamics
        from ..sequence_model.kinds import load_model
        from ..world_model.facts import held_out_share

        torch.set_num_threads(context.threads)
        store = TaskStore.open(context.input("store"))
        model = load_model(context.input("world_model"))
        held_out = held_out_share(context.input("world_model")) or 0.0
        check_same_tables(model.table, store.table, context)
        if ends := [task.name for task in store.table if task.terminates]:
            raise ConfigError(
                f"{', '.join(ends)} can end in a terminal state, which sequence models do not predict; leave such "
                "tasks out"
            )
        dynamics = [ModelDynamics(model, name, self.config.reward) for name in store.table.names]
        total = 0
        with context.progress("dyna", total=len(dynamics)) as progress:
            for rows, of_task in zip(store.tasks, dynamics, strict=True):
                progress.note(rows.spec.name)
                found, actions = self._generate(context, store, rows, of_task, held_out)
                total += found.reward_NT.numel()
                facts = {"episodes": len(found.reward_NT), "length": self.config.length, "actions": actions}
                writer = TaskWriter(
                    context.folder / rows.spec.slug, rows.spec, store.table.observation_dim, store.table.action_dim
                )
                source = {**rows.summary.source, "generated": {**facts, "model": model.config.kind}}
                real = rows.summary
                made = writer.write(
                    _all_episodes(rows, store, found), behaviour=real.behaviour, source=source, findings=real.findings
                )
                names = ("return_mean", "return_std", "return_min", "return_max", "length_mean")
                kept = {name: getattr(real, name) for name in (*names, "success_rate", "success_rate_last")}
                generated = real.generated + len(found.reward_NT)
                honest = dataclasses.replace(made, **kept, generated=generated)
                path = context.folder / rows.spec.slug / "task.json"
                path.write_text(json.dumps(dataclasses.asdict(honest), indent=1))
                progress.advance(1)
        finish_store(context.folder, store.table)
        return f"{total:,} transitions generated beside {sum(task.summary.transitions for task in store.tasks):,}"

    def _generate(
        self, context: Context, store: TaskStore, rows: TaskRows, dynamics: ModelDynamics, held_out: float
    ) -> tuple[Episodes, str]:
        """The generated episodes of one task, and whose actions they are."""
        import torch

        from .generation import explored, generate, starts_and_actions, uniform_actions

        config, spec = self.config, rows.spec
        generator = torch.Generator().manual_seed(derive_seed("dyna", config.seed, spec.name))
        count = max(round(config.share * rows.summary.transitions / config.length), 1)
        width = store.table.observation_dim
        start_NO, action_NTA = starts_and_actions(rows, width, count, config.length, held_out, generator)
        folders = self._policies(context, spec.name)
        low, high = config.noise
        level_N1 = low + (high - low) * torch.rand(count, 1, generator=generator)
        if folders:
            from ..policy.policy import load_policy

            policies, name = [load_policy(folder) for folder in folders], folders[0].parts[-3]

            def choose(t: int, observation_NO: torch.Tensor) -> torch.Tensor:
                action_NA = torch.zeros(len(observation_NO), spec.action_dim)
                for first, policy in enumerate(policies):
                    action_NA[first :: len(policies)] = policy.act(observation_NO[first :: len(policies)])
                return action_NA
        elif config.actions == "uniform":
            name = "uniform"

            def choose(t: int, observation_NO: torch.Tensor) -> torch.Tensor:
                return uniform_actions(spec, len(observation_NO), generator)
        else:
            name = "data"

            def choose(t: int, observation_NO: torch.Tensor) -> torch.Tensor:
                return action_NTA[:, t]

        noisy = explored(choose, spec, level_N1, generator)
        return generate(dynamics, start_NO, noisy, config.length, generator), name

    def _policies(self, context: Context, task: str) -> list[Path]:
        """The policies that act in a task, one per seed; empty if other actions are taken."""
        folder = context.optional_input("policies")
        if self.config.actions not in ("auto", "policies"):
            return []
        if folder is None:
            if self.config.actions == "policies":
                raise ConfigError(
                    "dyna.actions=policies, but the run has none: make some before, or give inputs.policies="
                )
            return []
        return PolicyIndex.read(folder).folders([task], self.config.algorithm, "dyna.algorithm")[task]


def _all_episodes(rows: TaskRows, store: TaskStore, generated: Episodes) -> Iterator[Episode]:
    """The data's episodes as they are, then the generated ones, which are cut off and never terminated."""
    from ...datasets.schema import Episode

    O, A, width = rows.spec.observation_dim, rows.spec.action_dim, store.table.observation_dim  # noqa: E741
    for number, (first, after) in enumerate(zip(rows.offsets[:-1], rows.offsets[1:], strict=True)):
        part = rows.rows[first:after].numpy()
        yield Episode(
            part[:, :O], part[:-1, width : width + A], part[:-1, -1], bool(rows.terminated[number]), label=f"{number}"
        )
    parts = (generated.observation_NTO, generated.action_NTA, generated.reward_NT)
    for number, (observation, action, reward) in enumerate(zip(*(part.numpy() for part in parts), strict=True)):
        yield Episode(observation, action, reward, False, label=f"generated {number}")
