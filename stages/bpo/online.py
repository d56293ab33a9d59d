"""The online loop of Ma et al.: act in one environment, fit the model to whole episodes, improve the policy in it.

    until `steps` are spent: play one episode with the stochastic policy and add it to the data;
    after `warmup` steps: a model update every `model_every` of them, a policy update every `policy_every`.

The environment is the task's simulator, which is used like any other: no gradient goes through it.

Dimension letters: T steps of an episode, B batch, O observation, A action.
Source: Ma et al. (arXiv 2402.05290), section 4 and released code. What differs: updates that fall into an episode are
made at its end, since only whole episodes are trained on; the model's scales come from the warm-up's episodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from ...datasets.schema import TaskSpec
from ...pipeline.errors import ConfigError
from ...pipeline.seeding import derive_seed
from ..sequence_model.config import SequenceModelConfig
from ..sequence_model.dynamics import ModelDynamics, SimulatorDynamics
from ..sequence_model.episodes import Episodes, ModelFit
from .bpo import PolicyOptimisation, imagined_horizon
from .config import OnlineConfig
from .imagination import imagine
from .policy import StackedPolicy


class OnlineLoop:
    """One task and seed. `run` makes a policy, and gives a row per episode."""

    def __init__(self, spec: TaskSpec, model: SequenceModelConfig, config: OnlineConfig, seed: int) -> None:
        """The model's horizon is made an episode's at least.

        Raises:
            ConfigError: the budget holds no update.
            TaskError: the task has no simulator of this project.
        """
        if config.warmup >= config.steps or config.steps < 2 * spec.episode_length:
            raise ConfigError(
                f"{config.steps} steps of task {spec.name!r} (episodes of {spec.episode_length}), warm-up "
                f"{config.warmup}, leave no data to learn from; raise bpo_online.online.steps"
            )
        self.spec, self.config, self.seed = spec, config, seed
        self._world = SimulatorDynamics(spec)
        model = dataclasses.replace(model, horizon=max(model.horizon, spec.episode_length))
        self._fit = ModelFit(spec, model, config.model_lr, derive_seed("online model", seed, spec.name) % 2**31)
        self.horizon = imagined_horizon(config.bpo, spec, self._fit.model, "bpo_online.online.bpo.horizon")
        self._policy_updates = max(config.steps - config.warmup, 0) // config.policy_every
        self._optimisation: PolicyOptimisation | None = None

    @property
    def total_steps(self) -> int:
        """Steps that are played, in whole episodes."""
        return self.config.steps // self.spec.episode_length * self.spec.episode_length

    def run(self) -> Iterator[dict[str, Any]]:
        """Play and learn until the steps are spent."""
        config, T = self.config, self.spec.episode_length
        policy = self._initial_policy()
        data: Episodes | None = None
        model_updates = policy_updates = 0
        for episode in range(config.steps // T):
            played = self._play(policy, episode)
            data = played if data is None else data + played
            spent = (episode + 1) * T
            learned = max(spent - config.warmup, 0)
            if learned:
                if self._optimisation is None:
                    self._fit.set_statistics(data)
                    self._optimisation = self._new_optimisation(data)
                    policy = self._optimisation.policy
                losses = []
                for _ in range(learned // config.model_every - model_updates):
                    losses.append(self._fit.update(data, config.batch_size))
                    model_updates += 1
                self._fit.model.requires_grad_(False)
                while policy_updates < min(learned // config.policy_every, self._policy_updates):
                    self._optimisation.update(policy_updates)
                    policy_updates += 1
                self._fit.model.requires_grad_(True)
                loss = sum(losses) / max(len(losses), 1)
            else:
                loss = float("nan")
            yield {
                "steps": spent,
                "return": float(played.reward_NT.sum()),
                "model_loss": loss,
                "model_updates": model_updates,
                "policy_updates": policy_updates,
            }

    @property
    def policy(self) -> StackedPolicy:
        assert self._optimisation is not None
        return self._optimisation.policy

    def imagined_return(self) -> float:
        assert self._optimisation is not None
        return float(self._optimisation.imagined_return()[0])

    def _play(self, policy: StackedPolicy, episode: int) -> Episodes:
        """One episode of the stochastic policy."""
        generator = torch.Generator().manual_seed(derive_seed("online", self.seed, self.spec.name, episode))
        start = self._world.task.initial_state(1, generator)
        width = self.spec.action_dim + self._world.noise_dim
        noise = torch.randn(self.spec.episode_length, 1, 1, width, generator=generator)
        with torch.no_grad():
            played = imagine(self._world, policy, start[None], noise)
        observation_HMBO = torch.cat([played.observation_HMBO, played.next_observation_HMBO[-1:]])
        observation, action, reward = (
            part[:, 0].transpose(0, 1).float() for part in (observation_HMBO, played.action_HMBA, played.reward_HMB)
        )
        return Episodes(observation, action, reward)

    def _initial_policy(self) -> StackedPolicy:
        """Of the warm-up, when scales are unknown: it reads zeros, so that its noise alone explores."""
        policy = StackedPolicy(1, self.spec.observation_dim, self.spec.action_dim, self.config.bpo.units)
        policy.mlp.initialise_uniform(
            0, torch.Generator().manual_seed(derive_seed("online policy", self.seed, self.spec.name))
        )
        policy.scale_O.fill_(torch.inf)
        return policy

    def _new_optimisation(self, data: Episodes) -> PolicyOptimisation:
        model = self._fit.model
        returns = data.reward_NT.sum(1)
        scale = max(float(returns.std()) if len(returns) > 1 else 0.0, 1e-3 * abs(float(returns.mean())), 1e-6)
        return PolicyOptimisation(
            ModelDynamics(model, self.spec.name, self.config.bpo.reward),
            self.spec,
            data.observation_NTO[:, 0],
            (model.observation_mean_KO[0], model.observation_scale_KO[0]),
            scale,
            [self.seed],
            self.horizon,
            self._policy_updates,
            self.config.bpo,
            self.seed,
        )
