"""The stage powr_online."""

from __future__ import annotations

import dataclasses
from functools import partial

from ...pipeline.artifact import link
from ...pipeline.errors import ConfigError
from ...pipeline.jobs.fanout import MemberJobs, fan_out_members, pack_by_task
from ...pipeline.stage import Context, Input, Stage
from ..policy.policy_index import write_index
from .config import ONLINE_ALGORITHM, PowrOnlineConfig, discrete_task
from .curves import CURVES_FILE, FIGURE_FILE, draw_curves, read_curves, write_curves


class PowrOnline(Stage):
    """Learn policies online by POWR, and draw learning curves.

    There is one policy per seed. Curves of earlier stages of the run, such as baselines, are drawn in the same figure.
    """

    Config = PowrOnlineConfig
    inputs = {"curves": Input("policies", optional=True, many=True)}
    output_kind = "policies"
    algorithms = (ONLINE_ALGORITHM,)
    not_hashed = ("fanout",)
    config: PowrOnlineConfig

    def check(self) -> None:
        if not self.config.task:
            raise ConfigError(
                "powr_online.task is empty: name a task, for example powr_online.task=gymnasium/CartPole-v1"
            )
        discrete_task(self.config.task, self.config.environment)

    def check_machine(self) -> None:
        self.config.fanout.check_machine(key="powr_online.fanout")

    def run(self, context: Context) -> str:
        from .online_job import learn_seeds

        config = self.config
        spec = discrete_task(config.task, config.environment)
        of_job = dataclasses.replace(config, task="", environment={}, seeds=1, threshold=None)
        seeds = range(config.seeds)
        program = MemberJobs(
            {"task": spec.to_dict(), "config": {**dataclasses.asdict(of_job), "fanout": {}}},
            [{"seed": seed} for seed in seeds],
            partial(pack_by_task, per_job=config.fanout.per_job(config.seeds, 1), slug=lambda member: spec.slug),
        )
        (found,) = fan_out_members([program], learn_seeds, context, config.fanout, hashed=[])
        rows = []
        for seed, result in zip(seeds, found, strict=True):
            link(result / f"seed_{seed}", context.folder / f"seed_{seed}")
            rows += read_curves(context.folder / f"seed_{seed}" / CURVES_FILE)
        write_curves(context.folder / CURVES_FILE, rows)
        paths = [folder / CURVES_FILE for folder in context.inputs.get("curves", ())]
        others = [row for path in paths if path.is_file() for row in read_curves(path)]
        draw_curves([*rows, *others], config.threshold, context.folder / FIGURE_FILE)
        entries = [
            {"algorithm": ONLINE_ALGORITHM, "task": spec.name, "seed": seed, "path": f"seed_{seed}/policy"}
            for seed in seeds
        ]
        write_index(context.folder, [spec], entries)
        returns = sorted(row.greedy_return for row in rows if row.transitions >= config.transitions)
        return (
            f"last greedy return {returns[len(returns) // 2]:.1f} (median of {config.seeds} seeds, "
            f"{returns[0]:.1f} to {returns[-1]:.1f}) after {config.transitions:,} transitions of {spec.name}"
        )
