"""Train policies from a store: first the encoder, whose loss needs no policy, then everything.

Several policies can train as one program with stacked weights; up to rounding, each is the same as if trained alone.

Source: the offline form of TD7 (arXiv 2306.02451), by the authors of MR.Q, who published none: the behaviour term and
the clamp of targets. The reward scale is that of the data from the start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...datasets.schema import TaskTable
from ...datasets.store import TaskStore
from ...pipeline import termination
from ...pipeline.accelerator import device_of
from ...pipeline.artifact import replacing
from ...pipeline.config.schema import build
from ...pipeline.jobs.job import JobContext
from ...pipeline.memory import reuse_freed_memory
from ...pipeline.seeding import derive_seed
from ..policy.policy_index import policy_entry
from ..training.loggers import logging_rows
from ..world_model.networks import WorldModel
from ..world_model.task_encoder import TaskEncoder
from .config import BEHAVIOUR_WEIGHT, MrqConfig, vary
from .learner import Learner, OfflineTerms, Shapes
from .policy import policy_of_member
from .stored import StoredTask

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class OfflineMember:
    """One policy."""

    task: str
    seed: int
    data: str = ""
    """Digest of the task's data."""


def learn_offline(payload: Mapping[str, Any], job: JobContext) -> None:
    """Job of the stage: train the members of one program; leaves the folder of each, and curve.csv.

    Args:
        payload: algorithm, variant, members (task and seed of each), config (a MrqConfig's dict).
    """
    import pandas as pd

    config: MrqConfig = build(MrqConfig, dict(payload["config"]), "mrq")
    torch.set_num_threads(job.threads)
    reuse_freed_memory()
    store = TaskStore.open(job.inputs["store"])
    model = None
    if config.start_from_world_model:
        model = WorldModel.load(job.inputs["world_model"])
    members = [OfflineMember(**one) for one in payload["members"]]
    training = OfflineTraining(store, members, config, payload["variant"], model)
    checkpoint = job.folder / CHECKPOINT
    if checkpoint.is_file():
        training.load_state_dict(torch.load(checkpoint, map_location=training.learner.device, weights_only=True))
    name = f"{payload['algorithm']} {members[0].task}, seed {members[0].seed}"
    if len(members) > 1:
        name += f" and {len(members) - 1} more"
    with (
        job.progress(name, total=training.total, completed=training.completed) as progress,
        termination.deferred(),
        logging_rows(config.loggers, job, config) as log,
    ):
        while (before := training.completed) < training.total and not termination.requested():
            logged = len(training.curve)
            training.advance()
            log([{"algorithm": payload["algorithm"], **row} for row in training.curve[logged:]])
            progress.advance(training.completed - before)
            if training.curve:
                progress.note(training.note)
            due = training.completed // config.checkpoint_every > before // config.checkpoint_every
            if due or termination.requested():
                with replacing(checkpoint) as temporary:
                    torch.save(training.state_dict(), temporary)
    rows = [{"algorithm": payload["algorithm"], **row} for row in training.curve]
    pd.DataFrame(rows).to_csv(job.folder / "curve.csv", index=False)
    training.save_policies(job.folder, payload["algorithm"])
    checkpoint.unlink(missing_ok=True)


class OfflineTraining:
    """A Learner over the stored tasks of its members, in two phases: `encoder_periods` of the encoder, then updates."""

    def __init__(
        self,
        store: TaskStore,
        members: Sequence[OfflineMember],
        config: MrqConfig,
        variant: str,
        model: WorldModel | None = None,
    ) -> None:
        """Raises:
        DatasetError: a task without a window.
        """
        self.config, self.members = config, members
        self.table: TaskTable = store.table
        learn = vary(config.learn, variant)
        device = device_of(config.accelerator)
        if store.num_bytes <= config.load_up_to_gb * 1e9 or device.type != "cpu":
            store = store.load(device)
        ids = [store.table.id_of(member.task) for member in members]
        self._features = [
            None if model is None else TaskEncoder.of(model, member.task).to(device) for member in members
        ]
        self._sources = [
            StoredTask(
                store.tasks[k],
                store.table.observation_dim,
                learn.horizons,
                prioritised=learn.design.prioritised,
                encode=features,
            )
            for k, features in zip(ids, self._features, strict=True)
        ]
        self._observation = (store.table.observation_dim if model is None else model.config.latent_dim,)
        discrete = store.table[ids[0]].action_kind == "discrete"
        shapes = Shapes(
            self._observation,
            discrete,
            torch.from_numpy(store.table.action_mask()[ids]),
            torch.tensor([learn.discount or store.table[k].discount for k in ids]),
        )
        weight = config.behaviour_weight
        weights = [BEHAVIOUR_WEIGHT[store.tasks[k].summary.behaviour] if weight is None else weight for k in ids]
        offline = OfflineTerms(torch.tensor(weights), config.clamp_targets)
        seeds = [derive_seed("mrq", config.seed, member.task, variant, member.seed) for member in members]
        self.learner = Learner(shapes, learn, seeds, device, offline)
        self.encoder_periods = -(-config.encoder_updates // learn.period) if learn.design.model_based else 0
        self.done = 0
        """Periods of the first phase, then updates of the second, so far."""
        self.curve: list[dict[str, Any]] = []
        self.note = ""
        self._metrics: dict[str, torch.Tensor] = {}
        """Latest of each: the encoder's are of its last burst."""

    @property
    def completed(self) -> int:
        """Number of updates so far, including those of the encoder alone."""
        alone = min(self.done, self.encoder_periods)
        return alone * self.learner.config.period + self.done - alone

    @property
    def total(self) -> int:
        return self.encoder_periods * self.learner.config.period + self.config.updates

    def advance(self) -> None:
        """One period of the encoder alone, or one training step."""
        if self.done < self.encoder_periods:
            self._metrics |= self.learner.pretrain_encoder(self._sources)
            self.done += 1
            self._log(-(self.encoder_periods - self.done) * self.learner.config.period)
            return
        update_encoder = not self.config.freeze_encoder
        self._metrics |= self.learner.train(self._sources, update_encoder=update_encoder)
        self.done += 1
        updates = self.done - self.encoder_periods
        if updates % self.config.log_every == 0 or updates == self.config.updates:
            self._log(updates)

    def _log(self, iteration: int) -> None:
        """One row per member; iterations before 0 are of the encoder alone."""
        self.learner.check_finite(self._metrics)
        values = {name: value.tolist() for name, value in self._metrics.items()}
        for m, member in enumerate(self.members):
            row = {name: column[m] for name, column in values.items()}
            self.curve.append({"iteration": iteration, "task": member.task, "seed": member.seed, **row})
        name = "value" if "value" in values else "model_dynamics"
        self.note = f"{name.replace('_', ' ')} {sum(values[name]) / len(self.members):.3f}"

    def save_policies(self, folder: Path, algorithm: str) -> None:
        learner = self.learner
        for m, member in enumerate(self.members):
            task = self.table.spec_of(member.task)
            policy_of_member(
                learner.encoder,
                learner.policy,
                m,
                task,
                learner.config.networks,
                self._observation,
                self.table.action_dim,
                {"algorithm": algorithm, "seed": member.seed},
                self._features[m],
            ).save(folder / policy_entry(algorithm, task, member.seed)["path"])

    def state_dict(self) -> dict[str, Any]:
        return {
            "learner": self.learner.state_dict(),
            "priorities": [source.priorities.state_dict(source.used) for source in self._sources],
            "done": self.done,
            "curve": self.curve,
            "metrics": self._metrics,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        for source, saved in zip(self._sources, state["priorities"], strict=True):
            source.priorities.load_state_dict(saved)
        self.done, self.curve, self._metrics = state["done"], state["curve"], state["metrics"]


def split_members(members: Sequence[OfflineMember], table: TaskTable, per_job: int) -> list[list[OfflineMember]]:
    """Split members into programs of at most `per_job`, by action kind."""
    groups = []
    for kind in ("continuous", "discrete"):
        own = [member for member in members if table.spec_of(member.task).action_kind == kind]
        groups += [own[i : i + per_job] for i in range(0, len(own), per_job)]
    return groups
