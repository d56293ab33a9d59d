"""The stage sac."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datasets.schema import TaskSpec
from ...pipeline.errors import ConfigError
from ...pipeline.jobs.fanout import run_all
from ...pipeline.seeding import derive_seed
from ...pipeline.stage import Context, Input, Stage
from ...pipeline.wording import counted
from ..policy.policy_index import policy_entry, write_index
from .config import SacConfig

if TYPE_CHECKING:
    import torch

PACKAGE = "stable_baselines3"
REWARD_ROWS = 65536
"""Transitions of the data that the reward is scaled by, at most."""
"""Comes with the extra `baselines`."""


@dataclass(frozen=True)
class _Job:
    config: SacConfig
    spec: TaskSpec
    seed: int
    statistics: tuple[torch.Tensor, torch.Tensor]
    """Mean and scale of the task's observations in the store, [O] each."""
    reward_scale: float
    artifact: Path

    def __str__(self) -> str:
        return f"sac on {self.spec.name}, seed {self.seed}"

    @property
    def entry(self) -> dict[str, Any]:
        return policy_entry("sac", self.spec, self.seed)

    @property
    def folder(self) -> Path:
        return self.artifact / self.entry["path"]

    @property
    def finished(self) -> bool:
        return (self.folder / "policy.json").is_file()


class Sac(Stage):
    """Train a soft actor-critic (Stable-Baselines3) online in each task's environment, as a model-free baseline.

    Observations and rewards are scaled by the standard deviations of the store's data, which is not used otherwise.
    Every episode end counts as terminal: no value is bootstrapped beyond it. Each run has its own process; finished
    runs are kept if the stage is interrupted.
    """

    Config = SacConfig
    inputs = {"store": Input("store")}
    output_kind = "policies"
    algorithms = ("sac",)
    run_keys = ("seeds", "seed")
    config: SacConfig

    def check(self) -> None:
        if importlib.util.find_spec(PACKAGE) is None:
            raise ConfigError(
                f"sac needs the package {PACKAGE}, which is not installed: pip install 'orrery[baselines]', or remove "
                "sac from `stages`"
            )

    def run(self, context: Context) -> str:
        from ...datasets.store import TaskStore

        config = self.config
        store = TaskStore.open(context.input("store"))
        names = config.tasks or list(store.table.names)
        jobs = [self._job(store, name, seed, context.folder) for name in names for seed in range(config.seeds)]
        waiting = [job for job in jobs if not job.finished]
        with context.progress("sac", total=len(jobs), completed=len(jobs) - len(waiting)) as progress:
            for job, _ in run_all(_learn, waiting, workers=context.workers, kept="finished runs"):
                progress.advance(1)
                progress.note(str(job))
        write_index(context.folder, store.table, [job.entry for job in jobs])
        return (
            f"{counted(len(jobs), 'policy', 'policies')} for {counted(len(names), 'task')}, {config.steps:,} steps each"
        )

    def _job(self, store: Any, name: str, seed: int, artifact: Path) -> _Job:
        from ..sequence_model.losses import observation_statistics

        rows = store.rows_of(name)
        spec = rows.spec
        if spec.action_kind != "continuous":
            raise ConfigError(f"sac needs continuous actions; task {name!r} has {spec.action_dim} discrete actions")
        mean, scale = (part[: spec.observation_dim] for part in observation_statistics(rows, spec.observation_dim))
        deviation = float(rows.rows[rows.sample_transitions(REWARD_ROWS), -1].double().std())
        return _Job(self.config, spec, seed, (mean, scale), max(deviation, 1e-6), artifact)


def _learn(job: _Job) -> None:
    """Train one actor and write it as a policy. Runs in a worker process."""
    import gymnasium
    import numpy as np
    import stable_baselines3
    import torch

    from ...datasets.tasks import make_environment
    from .mlp_policy import MlpPolicy

    torch.set_num_threads(1)
    config, spec = job.config, job.spec
    mean, scale = (part.numpy() for part in job.statistics)

    class Scaled(gymnasium.Wrapper[Any, Any, Any, Any]):
        """Observations and rewards in standard deviations; the time limit as an end."""

        def __init__(self, environment: gymnasium.Env[Any, Any]) -> None:
            super().__init__(environment)
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (spec.observation_dim,), np.float32)

        def reset(self, **given: Any) -> Any:
            observation, info = self.env.reset(**given)
            return self._scaled(observation), info

        def step(self, action: Any) -> Any:
            observation, reward, terminated, truncated, info = self.env.step(action)
            return self._scaled(observation), float(reward) / job.reward_scale, terminated or truncated, False, info

        def _scaled(self, observation: Any) -> Any:
            return ((np.asarray(observation, np.float32) - mean) / scale).astype(np.float32)

    seed = derive_seed("sac", config.seed, spec.name, job.seed) % 2**31
    learner = stable_baselines3.SAC(
        "MlpPolicy",
        Scaled(make_environment(spec)),
        learning_rate=config.lr,
        learning_starts=config.warm_up,
        batch_size=config.batch_size,
        gamma=config.discount,
        train_freq=config.update_every,
        policy_kwargs={"net_arch": {"pi": config.actor_units, "qf": config.critic_units}},
        seed=seed,
        device="cpu",
    )
    learner.learn(config.steps)
    actor = learner.policy.actor
    hidden = [layer for layer in actor.latent_pi if isinstance(layer, torch.nn.Linear)]
    policy = MlpPolicy.from_layers([*hidden, actor.mu], job.statistics, spec, {"algorithm": "sac", "seed": job.seed})
    policy.save(job.folder)
