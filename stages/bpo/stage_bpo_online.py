"""The stage bpo_online."""

from __future__ import annotations

import dataclasses

from ...datasets.tasks import resolve_name, task_spec
from ...pipeline.errors import ConfigError
from ...pipeline.jobs.fanout import FolderJob, fan_out
from ...pipeline.stage import Context, Stage
from ...pipeline.wording import counted
from ..training.config import check_loggers_installed
from .config import BpoOnlineConfig
from .gather import gather_finished


class BpoOnline(Stage):
    """Learn a sequence model and a policy together, online, in one environment (Ma et al.). Needs no data.

    There is one run per task and seed; finished runs are kept if the stage is interrupted.
    """

    Config = BpoOnlineConfig
    output_kind = "policies"
    algorithms = ("bpo_online",)
    not_hashed = ("loggers", "fanout")
    config: BpoOnlineConfig

    def check(self) -> None:
        if not self.config.tasks:
            raise ConfigError("bpo_online.tasks is empty: name a task, for example tasks=[myriad/cancer]")
        for name in self.config.tasks:
            if not resolve_name(name).startswith("myriad/"):
                raise ConfigError(f"bpo_online.tasks: {name!r} is not of the suite myriad, which bpo_online requires")

    def check_machine(self) -> None:
        check_loggers_installed(self.config, "bpo_online")
        self.config.fanout.check_machine(key="bpo_online.fanout")

    def run(self, context: Context) -> str:
        from .online_job import learn_online

        config = self.config
        specs = [task_spec(resolve_name(name)) for name in config.tasks]
        of_job = dataclasses.replace(config, tasks=[], seeds=1)
        settings = {**dataclasses.asdict(of_job), "fanout": {}}
        not_hashed = [f"config.{key}" for key in self.not_hashed]
        jobs = [
            FolderJob(
                f"{spec.slug}.seed_{seed}", {"task": spec.to_dict(), "seed": seed, "config": settings}, not_hashed
            )
            for spec in specs
            for seed in range(config.seeds)
        ]
        results = fan_out(jobs, learn_online, context, config.fanout)
        gather_finished(context.folder, specs, [{job.payload["seed"]: results[job.name]} for job in jobs])
        return (
            f"{counted(len(jobs), 'policy', 'policies')} for {counted(len(specs), 'task')}, "
            f"{config.online.steps:,} steps each"
        )
