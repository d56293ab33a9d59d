"""The stage powr_baselines."""

from __future__ import annotations

import importlib
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...datasets.schema import TaskSpec
from ...pipeline.errors import ConfigError
from ...pipeline.jobs.fanout import run_all
from ...pipeline.seeding import derive_seed
from ...pipeline.stage import Context, Stage
from ..powr.config import discrete_task
from ..powr.curves import (
    CURVES_FILE,
    FIGURE_FILE,
    CurveRow,
    completed_returns,
    draw_curves,
    failure_warnings,
    read_curves,
    write_curves,
)
from .config import LIBRARIES, PowrBaselinesConfig


@dataclass(frozen=True)
class _Job:
    config: PowrBaselinesConfig
    spec: TaskSpec
    algorithm: str
    seed: int
    file: Path

    def __str__(self) -> str:
        return f"{self.algorithm} on {self.spec.name}, seed {self.seed}"


class PowrBaselines(Stage):
    """Train A2C, DQN, PPO and TRPO baselines with Stable-Baselines3, for the learning curves of powr_online."""

    Config = PowrBaselinesConfig
    output_kind = "curves"
    run_keys = ("seeds", "seed")
    config: PowrBaselinesConfig

    def check(self) -> None:
        if not self.config.task:
            raise ConfigError(
                "powr_baselines.task is empty: name a task, for example powr_baselines.task=gymnasium/CartPole-v1"
            )
        discrete_task(self.config.task, self.config.environment)
        for package in sorted({LIBRARIES[name] for name in self.config.algorithms}):
            if importlib.util.find_spec(package) is None:
                raise ConfigError(
                    f"powr_baselines needs the package {package}, which is not installed: "
                    "pip install 'orrery[baselines]', or remove its algorithms from powr_baselines.algorithms"
                )

    def run(self, context: Context) -> str:
        config = self.config
        spec = discrete_task(config.task, config.environment)
        jobs = [
            _Job(config, spec, algorithm, seed, context.folder / f"{algorithm}_{seed}.csv")
            for algorithm in config.algorithms
            for seed in range(config.seeds)
        ]
        waiting = [job for job in jobs if not job.file.is_file()]
        with context.progress("powr_baselines", total=len(jobs), completed=len(jobs) - len(waiting)) as progress:
            for job, messages in run_all(_learn, waiting, workers=context.workers, kept="finished runs"):
                for message in messages:
                    context.log.warning("%s: %s", job, message)
                progress.advance(1)
                progress.note(str(job))
        rows = [row for job in jobs for row in read_curves(job.file)]
        write_curves(context.folder / CURVES_FILE, rows)
        draw_curves(rows, None, context.folder / FIGURE_FILE)
        last = [row for row in rows if row.transitions >= config.transitions]
        means = [
            f"{name} {math.fsum(row.greedy_return for row in last if row.algorithm == name) / config.seeds:.1f}"
            for name in config.algorithms
        ]
        return (
            f"last greedy return {', '.join(means)} (mean over {config.seeds} seeds) after {config.transitions:,} "
            "transitions"
        )


def _learn(job: _Job) -> list[str]:
    """Train one baseline and write its curve. Returns warnings. Runs in a worker process."""
    import gymnasium
    import numpy as np
    import torch

    from ...datasets.rollout import play_episodes
    from ...datasets.tasks import make_environment

    torch.set_num_threads(1)
    config, spec = job.config, job.spec
    pool = [make_environment(spec)]

    def one_hot(action: Any) -> np.ndarray:
        """The project's actions from the indices that these libraries give."""
        return np.eye(spec.action_dim, dtype=np.float32)[int(action)]

    choices = gymnasium.spaces.Discrete(spec.action_dim)
    environment = gymnasium.wrappers.TransformAction(make_environment(spec), one_hot, choices)
    algorithm = getattr(importlib.import_module(LIBRARIES[job.algorithm]), job.algorithm.upper())
    seed = derive_seed("powr_baselines", config.seed, job.algorithm, job.seed) % 2**31
    model = algorithm("MlpPolicy", environment, seed=seed, device="cpu", stats_window_size=config.evaluate_every)
    # The libraries' own logger makes a folder in the temporary directory for every run.
    model.set_logger(importlib.import_module("stable_baselines3.common.logger").Logger(None, []))

    def act(observation: np.ndarray, _: np.ndarray, /) -> np.ndarray:
        return np.eye(spec.action_dim, dtype=np.float32)[model.predict(observation, deterministic=True)[0]]

    rows: list[CurveRow] = []
    failed: list[str] = []

    def evaluate() -> None:
        count = config.evaluation_episodes
        chosen = [derive_seed("evaluate baseline", seed, len(rows), index) % 2**31 for index in range(count)]
        played = play_episodes(spec, act, chosen, pool=pool, lanes=count)
        returns = completed_returns((result for _, result in played), spec.name, failed)
        trained = [episode["r"] for episode in model.ep_info_buffer]
        model.ep_info_buffer.clear()
        rows.append(
            CurveRow(
                algorithm=job.algorithm,
                task=spec.name,
                seed=job.seed,
                transitions=model.num_timesteps,
                train_return=math.fsum(trained) / len(trained) if trained else math.nan,
                greedy_return=math.fsum(returns) / len(returns),
                greedy_min=min(returns),
                greedy_max=max(returns),
                sampled_return=math.nan,
            )
        )

    def watch(_locals: dict[str, Any], _globals: dict[str, Any]) -> bool:
        """Called after every step. True: continue."""
        if model.num_timesteps % config.evaluate_every == 0 and model.num_timesteps < config.transitions:
            evaluate()
        return True

    # One call: the exploration of DQN falls over a tenth of all steps, and would over a tenth of each part's.
    model.learn(config.transitions, callback=watch)
    evaluate()
    write_curves(job.file, rows)
    return failure_warnings(failed)
