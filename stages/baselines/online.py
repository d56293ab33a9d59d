"""An agent of Stable-Baselines3 that learns in the environment of its task."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...datasets.recorded import write_episodes
from ...datasets.rollout import play_episodes, policy_act
from ...datasets.schema import TaskSpec
from ...datasets.tasks import make_environment
from ...pipeline import termination
from ...pipeline.artifact import replacing
from ...pipeline.seeding import derive_seed
from ...pipeline.stage import ProgressTask
from ..powr.curves import CURVES_FILE, CurveRow, completed_returns, write_curves
from .config import EPISODES_FILE, LIBRARIES, BaselinesConfig
from .continuation import agent_state, restore
from .environment import LibraryEnv
from .library import library
from .mlp_policy import MlpPolicy

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class OnlineRun:
    """What one agent learns, and how."""

    config: BaselinesConfig
    spec: TaskSpec
    algorithm: str
    seed: int
    settings: Mapping[str, Any]
    """Arguments of the library's class beside those that all have."""
    statistics: tuple[np.ndarray, np.ndarray, float] | None
    """Mean and standard deviation of the task's observations, [O] float32 each, and that of its rewards."""
    folder: Path
    """Of the policy, and until it is complete of the checkpoint."""

    def __str__(self) -> str:
        return f"{self.algorithm} on {self.spec.name}, seed {self.seed}"


class OnlineAgent:
    """One agent with its environments, where its last checkpoint left it."""

    def __init__(self, run: OnlineRun) -> None:
        """Raises:
        CheckpointError: the environment of the checkpoint was another one.
        """
        self.run, self.config = run, run.config
        self._seed = derive_seed(run.algorithm, run.config.seed, run.spec.name, run.seed) % 2**31
        self._environment = LibraryEnv(run.spec, run.statistics, self._seed, run.config.keep_replay)
        self._evaluation = [make_environment(run.spec)]
        self._rows: list[CurveRow] = []
        self.failed: list[str] = []
        """Errors of evaluation episodes."""
        self._agent = getattr(library(LIBRARIES[run.algorithm]), run.algorithm.upper())(
            "MlpPolicy",
            self._environment,
            seed=self._seed,
            device="cpu",
            stats_window_size=run.config.evaluate_every or 100,
            **run.settings,
        )
        # The library's own logger makes a folder in the temporary directory for every run.
        self._agent.set_logger(library("stable_baselines3.common.logger").Logger(None, []))
        checkpoint = run.folder / CHECKPOINT
        if checkpoint.is_file():
            saved = torch.load(checkpoint, weights_only=True)
            restore(self._agent, self._environment, saved["agent"])
            self._rows, self.failed = [CurveRow(**row) for row in saved["curve"]], saved["failed"]

    @property
    def steps(self) -> int:
        """Environment steps so far."""
        return self._agent.num_timesteps

    def learn(self, progress: ProgressTask | None = None) -> None:
        """Learn until the end, or until the process is asked to end. Tells `progress` of every step."""
        agent, config, run = self._agent, self.config, self.run
        begun_at = saved_at = self.steps
        stopping = False

        class Watch(library("stable_baselines3.common.callbacks").BaseCallback):  # type: ignore[misc]
            def _on_rollout_start(_) -> None:
                nonlocal saved_at, stopping
                stopping = termination.requested()
                due = self.steps // config.checkpoint_every > saved_at // config.checkpoint_every
                if self.steps and (due or stopping):
                    self._save()
                    saved_at = self.steps

            def _on_step(_) -> bool:
                """Whether to continue."""
                if stopping:
                    return False
                # Algorithms that learn from whole rollouts go on to the end of the last one.
                if self.steps > config.steps:
                    return True
                if progress is not None:
                    progress.advance(1)
                if config.evaluate_every and self.steps % config.evaluate_every == 0 and self.steps < config.steps:
                    self._evaluate()
                    if progress is not None:
                        progress.note(f"{run}: return {self._rows[-1].greedy_return:.1f} at {self.steps}")
                return True

        if progress is not None:
            progress.note(str(run))
            progress.advance(begun_at)
        with termination.deferred():
            # One call: the exploration of DQN falls over a tenth of all steps, and would over a tenth of each part's.
            agent.learn(config.steps - begun_at, callback=Watch(), reset_num_timesteps=not begun_at)
        if config.evaluate_every:
            self._evaluate()

    def write(self) -> None:
        """Write the policy, and what else was asked for, to the run's folder."""
        folder = self.run.folder
        folder.mkdir(parents=True, exist_ok=True)
        if self.config.evaluate_every:
            write_curves(folder / CURVES_FILE, self._rows)
        if self.config.keep_replay:
            write_episodes(folder / EPISODES_FILE, self._environment.episodes, "baselines.steps")
        self._policy().save(folder)

    def _policy(self) -> MlpPolicy:
        run = self.run
        trained_by = {"algorithm": run.algorithm, "seed": run.seed}
        return MlpPolicy.from_agent(self._agent.policy, run.statistics, run.spec, trained_by)

    def _evaluate(self) -> None:
        count, run = self.config.evaluation_episodes, self.run
        seeds = [derive_seed("evaluate baseline", self._seed, len(self._rows), index) % 2**31 for index in range(count)]
        played = play_episodes(run.spec, policy_act(self._policy()), seeds, pool=self._evaluation, lanes=count)
        returns = completed_returns((result for _, result in played), run.spec.name, self.failed)
        trained = [episode["r"] for episode in self._agent.ep_info_buffer]
        self._agent.ep_info_buffer.clear()
        self._rows.append(
            CurveRow(
                algorithm=run.algorithm,
                task=run.spec.name,
                seed=run.seed,
                transitions=self.steps,
                train_return=float(np.mean(trained)) if trained else math.nan,
                greedy_return=float(np.mean(returns)),
                greedy_min=min(returns),
                greedy_max=max(returns),
                sampled_return=math.nan,
            )
        )

    def _save(self) -> None:
        self.run.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "agent": agent_state(self._agent, self._environment),
            "curve": [dataclasses.asdict(row) for row in self._rows],
            "failed": self.failed,
        }
        with replacing(self.run.folder / CHECKPOINT) as temporary:
            torch.save(state, temporary)
