"""The stage powr."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...pipeline.accelerator import check_gpu
from ...pipeline.artifact import write_json
from ...pipeline.errors import ConfigError, OrreryError
from ...pipeline.reading import read_made
from ...pipeline.seeding import derive_seed
from ...pipeline.stage import Context, Input, Stage
from ...pipeline.wording import counted
from ..policy.policy_index import policy_entry, write_index
from ..world_model.facts import read_model_facts
from .config import PowrConfig

if TYPE_CHECKING:
    import torch

    from ...datasets.store import TaskStore
    from ..world_model.networks import WorldModel
    from .features import Features

ALGORITHM = "powr"
FEATURE_ROWS = 20_000
"""Observations that scaling and principal components are estimated from."""


class Powr(Stage):
    """Plan policies on a store by kernel regression and policy mirror descent (POWR).

    There is one policy per task and seed; `fit.csv` reports each regression.
    """

    Config = PowrConfig
    inputs = {"store": Input("store"), "world_model": Input("world_model", optional=True, facts=read_model_facts)}
    output_kind = "policies"
    algorithms = (ALGORITHM,)
    run_keys = ("seeds", "seed")
    not_hashed = ("accelerator",)
    config: PowrConfig

    def check_input(self, name: str, folder: Path, facts: Any) -> None:
        if name == "world_model" and facts is not None and self.config.states == "latent":
            facts.check_single("powr.states=latent", folder)
            facts.check_predicts("latents", "powr.states=latent", folder)

    def check_machine(self) -> None:
        check_gpu(self.config.accelerator, "powr.accelerator")

    def run(self, context: Context) -> str:
        import pandas as pd
        import torch

        from ...datasets.store import TaskStore
        from ...datasets.tables import check_same_tables
        from ...pipeline.accelerator import device_of
        from ..world_model.networks import WorldModel

        config = self.config
        torch.set_num_threads(context.threads)
        device = device_of(config.accelerator)
        store = TaskStore.open(context.input("store"))
        model = None
        if config.states == "latent":
            if not context.inputs["world_model"]:
                raise ConfigError(
                    "powr.states=latent needs a world model: run pretrain first, or set inputs.world_model="
                )
            model = WorldModel.load(context.input("world_model"))
            check_same_tables(model.table, store.table, context)
        names = config.tasks or list(store.table.names)
        members = [(name, seed) for name in names for seed in range(config.seeds)]
        entries, facts = [], []
        with context.progress("powr", total=len(members)) as progress:
            for name, seed in members:
                entries.append(policy_entry(ALGORITHM, store.table.spec_of(name), seed))
                record = context.folder / entries[-1]["path"] / "fit.json"
                if not record.is_file():
                    record.parent.mkdir(parents=True, exist_ok=True)
                    try:
                        found = self._plan(store, model, name, seed, record.parent, device)
                    except OrreryError as error:
                        raise type(error)(f"{name}: {error}") from error
                    write_json(record, found)
                found = read_made(record, dict[str, Any])
                self._warn(context, name, seed, found)
                facts.append({"task": name, "seed": seed, **found})
                progress.advance(1)
                progress.note(name)
        write_index(context.folder, store.table, entries)
        pd.DataFrame(facts).to_csv(context.folder / "fit.csv", index=False)
        largest, steps = max(found["centres"] for found in facts), config.offline.planner.steps
        return (
            f"{counted(len(entries), 'policy', 'policies')} for {counted(len(names), 'task')}, {largest} centres, "
            f"{steps} steps each"
        )

    def _plan(
        self, store: TaskStore, model: WorldModel | None, name: str, seed: int, folder: Path, device: torch.device
    ) -> dict[str, Any]:
        """Plan one policy and save it; returns the record of its fit."""
        from .actions import CandidateActions
        from .kernels import StateKernel, median_distance
        from .offline import make_actions, plan, read_rows
        from .policy import KernelPolicy

        config = self.config
        own = derive_seed(config.seed, "powr", name, seed) % 2**31
        task = store.rows_of(name)
        assert task.spec.discount is not None
        features, repeats = self._features(store, model, name)
        data = read_rows(task, features, store.table.observation_dim, config.offline, own)
        kind = "delta" if repeats else config.kernel
        scaled = kind not in ("delta", "linear")
        scale = config.scale * median_distance(data.train.state_NO, own) if scaled else 1.0
        kernel = StateKernel.of(kind, scale)
        actions = make_actions(data, task.spec.action_kind, task.spec.action_dim, config.offline, own)
        made = plan(data, kernel, actions, task.spec.discount, config.offline, own, device)
        candidates = actions.candidate_UA if isinstance(actions, CandidateActions) else None
        policy = KernelPolicy.of(
            task.spec,
            features,
            kernel,
            made.model.centres.state_MO,
            made.model.choice_weights(made.improvement.weight_M),
            {"algorithm": ALGORITHM, "seed": seed},
            candidate_UA=candidates,
            action=config.action if candidates is not None else "mode",
            behaviour=made.behaviour,
            penalty=made.penalty,
        )
        policy.save(folder)
        return {**made.facts, "kernel": kind, "scale": scale}

    def _features(self, store: TaskStore, model: WorldModel | None, name: str) -> tuple[Features, bool]:
        """Return the map from observations to states, and whether the states are indices."""

        from ..world_model.task_encoder import TaskEncoder
        from .features import index_features, is_one_hot, latent_features, standardised_features

        k = store.table.id_of(name)
        rows = store.tasks[k]
        chosen = rows.sample_transitions(FEATURE_ROWS, self.config.offline.held_out)
        observation = rows.rows[chosen, : store.table[k].observation_dim]
        if model is not None:
            return latent_features(TaskEncoder.of(model, name), observation, self.config.components), False
        if is_one_hot(observation):
            return index_features(store.table[k].observation_dim), True
        return standardised_features(observation), False

    def _warn(self, context: Context, name: str, seed: int, found: dict[str, Any]) -> None:
        from .stability import radius_warning

        if (message := radius_warning(found["spectral_radius"])) is not None:
            context.log.warning("%s, seed %d: %s", name, seed, message)
