"""Playing the evaluation episodes of one policy, or of the random policy, on one task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...datasets.schema import TaskSpec
from ...pipeline.accelerator import device_of
from ...pipeline.artifact import hash_json
from ...pipeline.seeding import derive_seed
from .config import EvaluateConfig
from .scores import EpisodeRow, evaluation_seed

if TYPE_CHECKING:
    from ...datasets.rollout import Act

Run = tuple[str, str, int]
"""(algorithm, task, policy seed)."""


@dataclass(frozen=True)
class EvaluationJob:
    """One run to evaluate."""

    run: Run
    spec: TaskSpec
    config: EvaluateConfig
    policy: Path | str | None
    """As `load_any_policy` takes it; None for the random policy."""
    content: str
    """Digest of the policy's files; empty where they have none."""
    first: int = 0
    """Episode to begin with; those before are known."""

    @property
    def key(self) -> str:
        """Of what an episode follows from, beside its seed: equal where the same policy plays the same task."""
        return hash_json([self.run, self.spec.to_dict(), self.content])

    def __str__(self) -> str:
        algorithm, task, seed = self.run
        return f"evaluating {algorithm} on {task}, seed {seed}"


def evaluate_run(job: EvaluationJob) -> list[EpisodeRow]:
    """Play the episodes of one run. Runs in a worker process."""
    from ...datasets.rollout import kept_environments, play_episodes, policy_act

    algorithm, task, seed = job.run
    episodes = range(job.first, job.config.episodes)
    seeds = [evaluation_seed(job.config.seed, task, seed, episode) for episode in episodes]
    if job.policy is None:
        act = _random_act(job.spec, seeds)
    else:
        from ..policy.foreign import load_any_policy

        policy = policy_act(load_any_policy(job.policy, job.spec), device_of(job.config.accelerator))

        def act(observation: np.ndarray, episode: np.ndarray, /) -> np.ndarray:
            return policy(observation, episode + job.first)

    results = dict(play_episodes(job.spec, act, seeds, pool=kept_environments(job.spec)))
    return [
        EpisodeRow(algorithm, task, seed, episodes[index], result.seed, result.return_, result.length,
                   result.success_any, result.success_last, result.error)
        for index, result in sorted(results.items())
    ]  # fmt: skip


def _random_act(spec: TaskSpec, seeds: Sequence[int]) -> Act:
    from ...datasets.collect import uniform

    controllers = [uniform(spec, np.random.default_rng(derive_seed("random", seed))) for seed in seeds]

    def act(observation: np.ndarray, episode: np.ndarray, /) -> np.ndarray:
        return np.array([controllers[index](row) for index, row in zip(episode, observation, strict=True)])

    return act
