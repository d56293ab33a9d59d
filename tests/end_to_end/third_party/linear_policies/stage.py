"""linear: one linear policy per task and seed, by ridge regression of the data's actions on its observations."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orrery.pipeline.jobs.config import FanoutConfig
from orrery.pipeline.jobs.fanout import FolderJob, fan_out
from orrery.pipeline.jobs.job import JobContext
from orrery.pipeline.stage import Context, Input, Stage
from orrery.stages.policy.policy_index import policy_entry, write_index


@dataclass(frozen=True)
class LinearConfig:
    """Which policies are fitted."""

    seeds: int = 1
    """Policies per task, each of another half of the data."""
    seed: int = 0
    """Random seed."""
    ridge: float = 1e-3
    """Weight of the squared norm of the policy's weights."""
    fanout: FanoutConfig = field(default_factory=FanoutConfig)
    """Where the policies are fitted."""


class Linear(Stage):
    """Fit linear policies to the actions in the data."""

    Config = LinearConfig
    inputs = {"store": Input("store")}
    output_kind = "policies"
    algorithms = ("linear",)
    not_hashed = ("fanout",)
    config: LinearConfig

    def run(self, context: Context) -> str:
        from orrery.datasets.store import TaskStore

        table = TaskStore.open(context.input("store")).table
        entries = {
            f"{task.slug}.{seed}": policy_entry("linear", task, seed)
            for task in table
            for seed in range(self.config.seeds)
        }
        jobs = [
            FolderJob(name, {"entry": entry, "seed": self.config.seed, "ridge": self.config.ridge})
            for name, entry in entries.items()
        ]
        results = fan_out(jobs, fit, context, self.config.fanout)
        for name, entry in entries.items():
            shutil.copytree(results[name] / "policy", context.folder / entry["path"], dirs_exist_ok=True)
        write_index(context.folder, table, list(entries.values()))
        return f"{len(entries)} linear policies"


def fit(payload: Mapping[str, Any], job: JobContext) -> None:
    """Fit the policy of one task and seed."""
    import torch
    from orrery.datasets.store import TaskStore

    from .policy import LinearPolicy, LinearPolicyConfig

    entry = payload["entry"]
    store = TaskStore.open(job.inputs["store"])
    rows, width = store.rows_of(entry["task"]), store.table.observation_dim
    chosen = rows.rows[rows.sample_transitions(10_000)]
    generator = torch.Generator().manual_seed(1000 * payload["seed"] + entry["seed"])
    half = chosen[torch.randperm(len(chosen), generator=generator)[: len(chosen) // 2]].double()
    inputs = torch.cat([half[:, : rows.spec.observation_dim], torch.ones(len(half), 1)], 1)
    actions = half[:, width : width + rows.spec.action_dim]
    gram = inputs.T @ inputs + payload["ridge"] * torch.eye(inputs.shape[1])
    policy = LinearPolicy(LinearPolicyConfig("linear", rows.spec.to_dict(), {"algorithm": "linear", **entry}))
    policy.weight_OA.copy_(torch.linalg.solve(gram, inputs.T @ actions))
    policy.save(job.folder / "policy")
