"""mrq: MR.Q from a store, one policy per task and seed; the encoder is trained first, then everything."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...pipeline.accelerator import check_accelerator
from ...pipeline.config.checks import check_counts, check_not_negative
from ...pipeline.errors import ConfigError, StageError
from ...pipeline.jobs.config import FanoutConfig
from ...pipeline.reading import read_csv
from ...pipeline.stage import Context, Input, Stage
from ..policy.policy_index import policy_entry, write_index
from ..world_model.reward_range import rewards_beyond_bins
from .config import LearnConfig, algorithm_name, check_variants

if TYPE_CHECKING:
    from ...datasets.store import TaskStore


@dataclass(frozen=True)
class MrqConfig:
    """Which policies are learned from the store, and how."""

    tasks: list[str] = field(default_factory=list)
    """Tasks of the store to learn; all of them where empty."""
    seeds: int = 2
    """Policies per task and variant."""
    variants: list[str] = field(default_factory=lambda: ["mrq"])
    """mrq, and rows of the design study such as no_min or no_unroll, each scored as mrq@VARIANT."""
    encoder_updates: int = 5_000
    """Updates of the encoder alone before the first of values and policy, in whole periods of 250; 0 for none."""
    updates: int = 25_000
    """Training steps: updates of values and policy, with one of the encoder for each, in bursts."""
    freeze_encoder: bool = False
    """Leave the encoder as it is after `encoder_updates`."""
    start_from_world_model: bool = False
    """Learn on the latents of the run's world model instead of observations; its encoder stays frozen."""
    behaviour_weight: float = 0.1
    """lambda of the behaviour term lambda * mean|Q| * distance(policy, data's action) in the policy loss: mean squared
    distance, or cross-entropy where actions are discrete. 0 trusts the values alone."""
    clamp_targets: bool = True
    """Keep bootstrapped values within the range of the targets of the last 250 steps; guards extrapolation."""
    learn: LearnConfig = field(default_factory=LearnConfig)
    """The training step."""
    load_up_to_gb: float = 2.0
    """A store of at most this many gigabytes is loaded into memory; a larger one is read through a memory map."""
    log_every: int = 250
    """Updates between logged numbers."""
    checkpoint_every: int = 1_000
    """Updates between checkpoints for resuming."""
    accelerator: str = "auto"
    """cpu, cuda (or gpu, the same), or auto: a GPU where there is one."""
    fanout: FanoutConfig = field(default_factory=FanoutConfig)
    """Where the policies are trained. fanout.members_per_job=0 trains one in a job on a CPU, where stacking them gains
    nothing, and all of them on a GPU."""
    seed: int = 0
    """Base of all randomness of this stage."""

    def __post_init__(self) -> None:
        check_counts(self, "seeds", "updates", "log_every", "checkpoint_every")
        check_not_negative(self, "encoder_updates", "behaviour_weight")
        if self.freeze_encoder and not self.encoder_updates:
            raise ConfigError("mrq.freeze_encoder would leave the encoder untrained: give mrq.encoder_updates")
        check_accelerator(self)
        check_variants(self.variants, "mrq")


class Mrq(Stage):
    """Policies for all tasks, variants and seeds, and training.csv."""

    Config = MrqConfig
    inputs = {"store": Input("store"), "world_model": Input("world_model", optional=True)}
    output_kind = "policies"
    algorithms = ("mrq",)
    not_hashed = ("fanout",)
    config: MrqConfig

    def check(self) -> None:
        self.config.fanout.check_gpus(self.config.accelerator, "mrq.accelerator")

    def check_machine(self) -> None:
        self.config.fanout.check_machine(self.config.accelerator, "mrq.accelerator")

    def run(self, context: Context) -> str:
        import pandas as pd

        from ...datasets.store import TaskStore
        from ...pipeline.jobs.fanout import FolderJob, fan_out
        from .offline import learn_offline

        store = TaskStore.open(context.input("store"))
        if self.config.start_from_world_model:
            self._check_world_model(context, store)
        learn = self.config.learn
        learned = [store.rows_of(name).summary for name in self.config.tasks or store.table.names]
        said = rewards_beyond_bins(learned, learn.networks.bin_limit, "mrq.learn.networks.bin_limit")
        if said is not None and learn.design.two_hot_reward:
            context.log.warning("mrq: %s", said)
        payloads = self._payloads(store)
        jobs = [FolderJob(name, payload) for name, payload in payloads.items()]
        results = fan_out(jobs, learn_offline, context, self.config.fanout, accelerator=self.config.accelerator)
        entries, curves = [], []
        for name, payload in payloads.items():
            for member in payload["members"]:
                entry = policy_entry(payload["algorithm"], store.table.spec_of(member["task"]), member["seed"])
                shutil.copytree(results[name] / entry["path"], context.folder / entry["path"], dirs_exist_ok=True)
                entries.append(entry)
            curves.append(read_csv(results[name] / "curve.csv"))
        write_index(context.folder, store.table, entries)
        pd.concat(curves, ignore_index=True).to_csv(context.folder / "training.csv", index=False)
        tasks = len({entry["task"] for entry in entries})
        return f"{len(entries)} policies for {tasks} tasks, {self.config.updates:,} updates each"

    def _payloads(self, store: TaskStore) -> dict[str, dict[str, Any]]:
        """Of each job by its name: a program of one or more members."""
        from ...pipeline.accelerator import device_of
        from .offline import OfflineMember, split_members

        config = self.config
        names = config.tasks or list(store.table.names)
        for name in names:
            store.table.id_of(name)
        members = [OfflineMember(name, seed) for name in names for seed in range(config.seeds)]
        per_job = config.fanout.members_per_job or (1 if device_of(config.accelerator).type == "cpu" else len(members))
        of_job = dataclasses.replace(config, tasks=[], seeds=1, variants=["mrq"], fanout=FanoutConfig())
        settings = {key: value for key, value in dataclasses.asdict(of_job).items() if key != "fanout"}
        payloads = {}
        for variant in config.variants:
            algorithm = algorithm_name("mrq", variant)
            for number, group in enumerate(split_members(members, store.table, per_job)):
                payloads[f"{algorithm}.{number}"] = {
                    "algorithm": algorithm,
                    "variant": variant,
                    "members": [dataclasses.asdict(member) for member in group],
                    "config": settings,
                }
        return payloads

    def _check_world_model(self, context: Context, store: TaskStore) -> None:
        from ...datasets.schema import read_table
        from ..extraction.stage_extract import check_same_tables

        if not context.inputs["world_model"]:
            raise StageError(
                "mrq.start_from_world_model needs a world model: list the stage pretrain before mrq, or give "
                "inputs.world_model=FOLDER"
            )
        check_same_tables(read_table(context.input("world_model")), store.table, context)
