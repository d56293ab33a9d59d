"""The stage pretrain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datasets.facts import DataFacts, read_store_facts
from ...datasets.tables import check_entries
from ...pipeline.accelerator import check_gpu
from ...pipeline.errors import StageError
from ...pipeline.hub import find_artifact
from ...pipeline.ranks import launched
from ...pipeline.stage import Context, Input, Stage
from ..training.config import TRAINING_NOT_HASHED, check_loggers_installed
from ..world_model.facts import ModelFacts
from ..world_model.reward_range import beyond_bins
from .config import PretrainConfig

if TYPE_CHECKING:
    import pandas as pd

    from ...datasets.store import TaskStore


class Pretrain(Stage):
    """Pretrain one multi-task world model on a store.

    The frozen model is published as safetensors, config and task table.
    """

    Config = PretrainConfig
    inputs = {"store": Input("store", facts=read_store_facts)}
    output_kind = "world_model"
    not_hashed = (
        *TRAINING_NOT_HASHED,
        "start_from",  # the path of the weights; `reads` covers their content
    )
    config: PretrainConfig

    def check(self) -> None:
        self.reads()

    def check_input(self, name: str, folder: Path, facts: DataFacts | None) -> None:
        if facts is not None:
            check_entries("pretrain.mixture", self.config.mixture, facts.tasks, "the store holds")

    @property
    def processes(self) -> int:
        return self.config.trainer.nodes * self.config.trainer.devices

    def promise(self, inputs: Mapping[str, Sequence[Any]]) -> ModelFacts:
        (data,) = inputs["store"]
        config = self.config.latent_model if self.config.kind == "latent" else self.config.sequence
        return ModelFacts.of(config, None if data is None else data.tasks)

    def check_machine(self) -> None:
        trainer = self.config.trainer
        if trainer.nodes > 1 and launched() is None:
            nodes, devices = trainer.nodes, trainer.devices
            raise StageError(
                f"pretrain.trainer.nodes is {nodes}, but this process was started alone. Start the command once per "
                f"device and node: srun --nodes={nodes} --ntasks-per-node={devices} orrery run ..., or on each node "
                f"torchrun --nnodes={nodes} --nproc-per-node={devices} --node-rank=NUMBER --master-addr=FIRST_NODE "
                "--no-python orrery run ..."
            )
        # A process that was started beside others may see its own GPU alone.
        here = trainer.devices if launched() is None else 1
        check_loggers_installed(self.config, "pretrain")
        check_gpu(trainer.accelerator, "pretrain.trainer.accelerator", here)

    def reads(self) -> list[Path]:
        return [find_artifact(self.config.start_from, self.output_kind)] if self.config.start_from else []

    def run(self, context: Context) -> str:
        import torch

        from ...datasets.store import TaskStore
        from ..training.fit import logged_metrics
        from ..training.warm_start import take_weights
        from ..world_model.start_frames import save_store_frames

        config = self.config
        store = TaskStore.open(context.input("store"))
        torch.manual_seed(config.seed)
        self._check_rewards(store, context)
        module, validation_length = self._latent(store) if config.kind == "latent" else self._sequence(store)
        for folder in self.reads():
            take_weights(module.model, folder, "model" if config.kind == "latent" else "sequence_model")
        weights = mixture_weights(config, {task.spec.name: task.summary.behaviour for task in store.tasks})
        self._fit(module, weights, validation_length, context)
        if context.team is not None and context.team.launch.rank > 0:
            return ""  # the first process writes the output
        module.model.save(context.folder)
        if config.kind == "latent":
            save_store_frames(store, context.folder, config.held_out)
        training, validation = logged_metrics(context.folder)
        training.to_csv(context.folder / "training.csv", index=False)
        validation.to_csv(context.folder / "validation.csv", index=False)
        return _summary(module.model, config.steps, validation)

    def _check_rewards(self, store: TaskStore, context: Context) -> None:
        if self.config.kind == "latent":
            model = self.config.model.complete()
            said = beyond_bins(store.tasks, model.bin_limit, "pretrain.model.bin_limit", values=model.num_q > 0)
            if said is not None:
                context.log.warning("pretrain: %s", said)

    def _latent(self, store: TaskStore) -> tuple[Any, int]:
        """The latent model to be trained, and the steps of a validation window."""

        from ..world_model.balance import reward_entropy, reward_weights, scale_observations
        from ..world_model.module import WorldModelTraining
        from ..world_model.networks import WorldModel
        from ..world_model.open_loop import validation_length

        config = self.config
        model = WorldModel(config.latent_model, store.table)
        for k, task in enumerate(store.tasks):
            scale_observations(model, k, task, config.held_out)
        entropy_K = reward_entropy(store, model.bins_M, config.held_out)
        module = WorldModelTraining(
            model,
            config.loss,
            config.optimizer,
            reward_weights(entropy_K, config.reward_balance),
            total_steps=config.steps,
            log_every=config.trainer.log_every,
            seed=config.seed,
            compiled=config.trainer.compile,
        )
        return module, validation_length(config.horizon, model.config.longest_prediction())

    def _sequence(self, store: TaskStore) -> tuple[Any, int]:
        """The sequence model to be trained, and the steps of a validation window."""
        from ..sequence_model.kinds import build_model
        from ..sequence_model.losses import set_statistics
        from ..sequence_model.module import SequenceModelTraining

        config = self.config
        model = build_model(config.sequence, store.table)
        set_statistics(model, store, config.held_out)
        module = SequenceModelTraining(
            model,
            config.sequence_loss,
            config.optimizer,
            total_steps=config.steps,
            log_every=config.trainer.log_every,
            seed=config.seed,
        )
        return module, config.horizon

    def _fit(self, module: Any, weights: dict[str, float], validation_length: int, context: Context) -> None:
        from ...datasets.datamodule import WindowData, WindowSettings
        from ..training.fit import fit

        config = self.config
        settings = WindowSettings(
            horizon=config.horizon,
            batch_size=config.batch_size,
            seed=config.seed,
            held_out=config.held_out,
            validation_length=validation_length,
            validation_batches=config.validation_batches,
            weights=weights,
            reward_windows=config.reward_windows,
            stage="pretrain",
            load_up_to_gb=config.load_up_to_gb,
        )
        fit(module, WindowData(context.input("store"), settings), config, "pretrain", context, context.team)


def mixture_weights(config: PretrainConfig, behaviours: Mapping[str, str]) -> dict[str, float]:
    """Mixture weight of every task, from the behaviours that made their data.

    Raises:
        ConfigError: `mixture` names a task that is not there.
    """
    check_entries("pretrain.mixture", config.mixture, list(behaviours), "the store holds")
    by_behaviour = {name: config.behaviour_mixture.get(kind, 1.0) for name, kind in behaviours.items()}
    return {**by_behaviour, **config.mixture}


def _summary(model: Any, steps: int, validation: pd.DataFrame) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    head = f"{parameters:,} parameters, {steps:,} steps"
    predicted = "observation" if "observation_r2" in validation else "reward"
    known = validation.dropna(subset=f"{predicted}_r2")
    if known.empty:
        return head
    last = known[(known.step == known.step.max()) & (known.horizon == known.horizon.max())]
    r2 = last[f"{predicted}_r2"]
    worst = last.loc[r2.idxmin()]
    return (
        f"open-loop {predicted} R2 {r2.median():.2f} median over tasks, {int(worst.horizon)} steps ahead, "
        f"worst {r2.min():.2f} ({worst.task}); {head}"
    )
