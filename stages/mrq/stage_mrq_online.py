"""The stage mrq_online."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...datasets.schema import TaskSpec
from ...datasets.tasks import resolve_name, task_spec
from ...pipeline.artifact import link
from ...pipeline.errors import ConfigError
from ...pipeline.reading import read_csv
from ...pipeline.stage import Context, Stage
from ...pipeline.wording import counted
from ..policy.policy_index import policy_entry, write_costs, write_index
from ..training.config import check_loggers_installed
from .config import MrqOnlineConfig, algorithm_name


class MrqOnline(Stage):
    """Train MR.Q policies online in simulators.

    There is one policy per task, variant and seed. With `keep_replay`, the replay buffers can become data for other
    stages.
    """

    Config = MrqOnlineConfig
    output_kind = "policies"
    algorithms = ("mrq_online",)
    not_hashed = ("evaluate_every", "checkpoint_every", "accelerator", "loggers", "fanout")
    config: MrqOnlineConfig

    def check(self) -> None:
        self.config.fanout.check_gpus(self.config.accelerator, "mrq_online.accelerator")
        if not self.config.tasks:
            raise ConfigError("mrq_online.tasks is empty: name a task, for example tasks=[dmc/cartpole-balance]")
        names = [resolve_name(name) for name in self.config.tasks]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"mrq_online.tasks repeats a task: {', '.join(repeated)}")
        if self.config.pixels and (other := [name for name in names if not name.startswith("dmc/")]):
            raise ConfigError(f"mrq_online.pixels renders dm_control tasks (dmc/...) only, found {', '.join(other)}")
        if self.config.pixels and not (os.environ.get("MUJOCO_GL") or os.environ.get("DISPLAY")):
            raise ConfigError(
                "mrq_online.pixels needs to render and finds no display here; set the environment variable "
                "MUJOCO_GL=egl (or osmesa)"
            )
        if self.config.pixels and self.config.keep_replay:
            raise ConfigError("mrq_online.keep_replay: datasets of images are not supported; set it to false")

    def check_machine(self) -> None:
        check_loggers_installed(self.config, "mrq_online")
        self.config.fanout.check_machine(self.config.accelerator, "mrq_online.accelerator")

    def run(self, context: Context) -> str:
        import pandas as pd

        from ...pipeline.jobs.fanout import FolderJob, fan_out
        from .online import learn_online

        config = self.config
        specs = self._specs()
        jobs: dict[str, tuple[FolderJob, dict[str, Any]]] = {}
        for variant in config.variants:
            algorithm = algorithm_name("mrq_online", variant)
            for spec in specs:
                for seed in range(config.seeds):
                    name = f"{algorithm}.{spec.slug}.seed_{seed}"
                    of_job = dataclasses.replace(config, tasks=[], seeds=1, variants=["mrq"])
                    settings = {**dataclasses.asdict(of_job), "fanout": {}}
                    payload = {
                        "task": spec.to_dict(), "algorithm": algorithm, "variant": variant, "seed": seed,
                        "config": settings,
                    }  # fmt: skip
                    not_hashed = [f"config.{key}" for key in self.not_hashed]
                    jobs[name] = FolderJob(name, payload, not_hashed), payload
        results = fan_out(
            [job for job, _ in jobs.values()], learn_online, context, config.fanout, accelerator=config.accelerator
        )
        entries, curves = [], []
        for name, (_, payload) in jobs.items():
            entries.append(_publish(results[name], payload, context.folder, config.keep_replay))
            curves.append(read_csv(results[name] / "curve.csv"))
        write_index(context.folder, specs, entries)
        write_costs(context.folder, entries, [results[name] for name in jobs])
        training = pd.concat(curves, ignore_index=True)
        training.to_csv(context.folder / "training.csv", index=False)
        return _summary(training, config)

    def _specs(self) -> list[TaskSpec]:
        specs = [task_spec(resolve_name(name)) for name in self.config.tasks]
        if self.config.pixels:
            from .pixels import pixel_spec

            specs = [pixel_spec(spec, self.config.frames) for spec in specs]
        return specs


def _publish(result: Path, payload: Mapping[str, Any], folder: Path, with_replay: bool) -> dict[str, Any]:
    """Copy what a job made into the artifact; returns the policy's entry of policies.json."""
    entry = policy_entry(payload["algorithm"], TaskSpec.from_dict(payload["task"]), payload["seed"])
    link(result / "policy", folder / entry["path"])
    if with_replay:
        entry["episodes"] = f"{entry['path']}/episodes.npz"
        link(result / "episodes.npz", folder / entry["episodes"])
    return entry


def _summary(training: Any, config: MrqOnlineConfig) -> str:
    last = training[training.iteration == training.iteration.max()].groupby("algorithm", sort=False).return_mean.mean()
    returns = ", ".join(f"{algorithm} {value:.1f}" for algorithm, value in last.items())
    policies = len(training[["algorithm", "task", "seed"]].drop_duplicates())
    return f"final mean return {returns}; {counted(policies, 'policy', 'policies')}, {config.steps:,} steps each"
