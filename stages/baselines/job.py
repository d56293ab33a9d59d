"""A job of the stage baselines: agents of Stable-Baselines3, trained side by side in processes of one thread."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...datasets.recorded import write_episodes
from ...datasets.rollout import play_episodes, policy_act
from ...datasets.schema import TaskSpec
from ...datasets.tasks import make_environment
from ...pipeline.config.schema import build
from ...pipeline.jobs.job import JobContext
from ...pipeline.jobs.pool import run_all
from ...pipeline.seeding import derive_seed
from ...pipeline.stage import ProgressTask
from ..policy.policy_index import policy_entry
from ..powr.curves import CURVES_FILE, CurveRow, completed_returns, failure_warnings, write_curves
from .config import EPISODES_FILE, LIBRARIES, BaselinesConfig
from .environment import LibraryEnv
from .library import library
from .mlp_policy import MlpPolicy


@dataclass(frozen=True)
class _Run:
    config: BaselinesConfig
    spec: TaskSpec
    algorithm: str
    seed: int
    settings: Mapping[str, Any]
    """Arguments of the library's class beside those that all have."""
    statistics: tuple[np.ndarray, np.ndarray, float] | None
    """Mean and standard deviation of the task's observations, [O] float32 each, and that of its rewards."""
    folder: Path

    def __str__(self) -> str:
        return f"{self.algorithm} on {self.spec.name}, seed {self.seed}"


def learn_policies(payload: Mapping[str, Any], context: JobContext) -> None:
    """Train the members, each into the folder of its policy. Those that an interrupted attempt has finished are kept.

    Args:
        payload: members (task as a TaskSpec's dict, algorithm, seed, settings, statistics), config (a
            BaselinesConfig's dict).
    """
    config: BaselinesConfig = build(BaselinesConfig, dict(payload["config"]), "baselines")
    runs = []
    for member in payload["members"]:
        spec = TaskSpec.from_dict(member["task"])
        folder = context.folder / policy_entry(member["algorithm"], spec, member["seed"])["path"]
        statistics = member["statistics"]
        if statistics is not None:
            statistics = (*(np.array(one, np.float32) for one in statistics[:2]), statistics[2])
        runs.append(_Run(config, spec, member["algorithm"], member["seed"], member["settings"], statistics, folder))
    waiting = [run for run in runs if not (run.folder / "policy.json").is_file()]
    done, total = len(runs) - len(waiting), len(runs) * config.steps
    with context.progress("baselines", total=total, completed=done * config.steps) as progress:
        # Other processes cannot tell how far they are.
        alone = min(context.workers, len(waiting)) <= 1
        learn = partial(_learn, progress=progress) if alone else _learn
        for run, messages in run_all(learn, waiting, workers=1 if alone else context.workers):
            for message in messages:
                context.log.warning("%s: %s", run, message)
            if not alone:
                progress.advance(config.steps)
                progress.note(f"{run}: done")


def _learn(run: _Run, progress: ProgressTask | None = None) -> list[str]:
    """Train one agent; write its policy and its curve. Returns warnings. Runs in a worker process, or tells `progress`
    of every step."""
    torch.set_num_threads(1)
    config, spec = run.config, run.spec
    environment = LibraryEnv(spec, run.statistics, config.keep_replay)
    pool = [make_environment(spec)]
    seed = derive_seed(run.algorithm, config.seed, spec.name, run.seed) % 2**31
    model = getattr(library(LIBRARIES[run.algorithm]), run.algorithm.upper())(
        "MlpPolicy",
        environment,
        seed=seed,
        device="cpu",
        stats_window_size=config.evaluate_every or 100,
        **run.settings,
    )
    # The library's own logger makes a folder in the temporary directory for every run.
    model.set_logger(library("stable_baselines3.common.logger").Logger(None, []))

    def policy() -> MlpPolicy:
        trained_by = {"algorithm": run.algorithm, "seed": run.seed}
        return MlpPolicy.from_agent(model.policy, run.statistics, spec, trained_by)

    rows: list[CurveRow] = []
    failed: list[str] = []

    def evaluate() -> None:
        count = config.evaluation_episodes
        seeds = [derive_seed("evaluate baseline", seed, len(rows), index) % 2**31 for index in range(count)]
        played = play_episodes(spec, policy_act(policy()), seeds, pool=pool, lanes=count)
        returns = completed_returns((result for _, result in played), spec.name, failed)
        trained = [episode["r"] for episode in model.ep_info_buffer]
        model.ep_info_buffer.clear()
        rows.append(
            CurveRow(
                algorithm=run.algorithm,
                task=spec.name,
                seed=run.seed,
                transitions=model.num_timesteps,
                train_return=float(np.mean(trained)) if trained else math.nan,
                greedy_return=float(np.mean(returns)),
                greedy_min=min(returns),
                greedy_max=max(returns),
                sampled_return=math.nan,
            )
        )

    def watch(_locals: dict[str, Any], _globals: dict[str, Any]) -> bool:
        """Called after every step. True: continue."""
        # Algorithms that learn from whole rollouts go on to the end of the last one.
        if model.num_timesteps > config.steps:
            return True
        if progress is not None:
            progress.advance(1)
        due = config.evaluate_every and model.num_timesteps % config.evaluate_every == 0
        if due and model.num_timesteps < config.steps:
            evaluate()
            if progress is not None:
                progress.note(f"{run}: return {rows[-1].greedy_return:.1f} at {rows[-1].transitions}")
        return True

    if progress is not None:
        progress.note(str(run))
    # One call: the exploration of DQN falls over a tenth of all steps, and would over a tenth of each part's.
    model.learn(config.steps, callback=watch)
    if config.evaluate_every:
        evaluate()
        run.folder.mkdir(parents=True, exist_ok=True)
        write_curves(run.folder / CURVES_FILE, rows)
    if config.keep_replay:
        run.folder.mkdir(parents=True, exist_ok=True)
        write_episodes(run.folder / EPISODES_FILE, environment.episodes, "baselines.steps")
    policy().save(run.folder)
    return failure_warnings(failed)
