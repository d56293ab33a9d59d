"""MR.Q learns: from stored episodes, and while it plays, on a point mass whose best policy is known.

The problem is that of test_point_mass: x' = x + 0.2 v, v' = 0.8 v + 0.4 a, reward exp(-4 x^2), 25 steps from
x ~ U(-1, 1). Random actions earn about 10, doing nothing 11, a proportional-derivative controller 19.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from orrery.datasets.tasks import task_spec
from orrery.stages.mrq.config import LearnConfig, MrqConfig, MrqOnlineConfig, NetworkConfig
from orrery.stages.mrq.offline import OfflineMember, OfflineTraining
from orrery.stages.mrq.online import OnlineTraining
from orrery.stages.policy.policy import load_policy

from ..unit.stores import point_mass_episodes, point_mass_spec, write_store

SMALL = NetworkConfig(32, 32, 16, 32, 32, 32)


class PointMass(gymnasium.Env):
    """The same point mass, to be played; choices, where actions are discrete, push left, not at all, or right."""

    def __init__(self, discrete: bool) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Discrete(3) if discrete else spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._state = np.array([np.random.default_rng(seed).uniform(-1, 1), 0.0])
        return self._state.astype(np.float32), {}

    def step(self, action: Any) -> Any:
        push = float(action) - 1 if isinstance(self.action_space, spaces.Discrete) else float(action[0])
        reward = float(np.exp(-4 * self._state[0] ** 2))
        x, v = self._state
        self._state = np.array([x + 0.2 * v, 0.8 * v + 0.4 * push])
        return self._state.astype(np.float32), reward, False, False, {}


for kind in (True, False):
    name = f"OrreryPointMass{'Choice' if kind else ''}-v0"
    gymnasium.register(name, entry_point=PointMass, kwargs={"discrete": kind}, max_episode_steps=25)


def mean_return(act, episodes=64, seed=1):
    state = np.stack([np.random.default_rng(seed).uniform(-1, 1, episodes), np.zeros(episodes)], 1)
    total = np.zeros(episodes)
    for _ in range(25):
        push = act(state.astype(np.float32))
        total += np.exp(-4 * state[:, 0] ** 2)
        state = np.stack([state[:, 0] + 0.2 * state[:, 1], 0.8 * state[:, 1] + 0.4 * push], 1)
    return total.mean()


BEST = mean_return(lambda s: np.clip(-8 * s[:, 0] - 3 * s[:, 1], -1, 1))
RANDOM = mean_return(lambda s: np.random.default_rng(3).uniform(-1, 1, len(s)))
# 64 paired starts: the standard error of the mean return is about 0.5, the margin below 7. An untrained policy, near
# random's score, passes with odds below 1e-6.
ENOUGH = RANDOM + 0.75 * (BEST - RANDOM)


def test_offline_from_random_actions(tmp_path):
    spec = point_mass_spec()
    store = write_store(tmp_path / "store", [(spec, point_mass_episodes(spec, 80))])
    # Random data: the policy has to leave it, and by default nothing ties it to such data.
    learn = LearnConfig(
        networks=SMALL, batch_size=32, period=50, encoder_lr=1e-3, value_lr=1e-3, policy_lr=1e-3, discount=0.9
    )
    config = MrqConfig(learn=learn, encoder_updates=200, updates=600, log_every=100)
    members = [OfflineMember(spec.name, seed) for seed in (0, 1)]
    training = OfflineTraining(store, members, config, "mrq")
    while training.done < training.encoder_periods + config.updates:
        training.advance()
    training.save_policies(tmp_path, "mrq")
    for seed in (0, 1):
        policy = load_policy(tmp_path / "mrq" / spec.slug / f"seed_{seed}")
        found = mean_return(lambda s, p=policy: p.act(torch.from_numpy(s)).numpy()[:, 0])
        assert found > ENOUGH, (seed, found, BEST, RANDOM)


@pytest.mark.parametrize("name", ["OrreryPointMass-v0", "OrreryPointMassChoice-v0"])
def test_online_with_actions_and_with_choices(name):
    learn = LearnConfig(
        networks=SMALL, batch_size=32, period=50, encoder_lr=1e-3, value_lr=1e-3, policy_lr=1e-3, discount=0.9
    )
    config = MrqOnlineConfig(
        learn=learn, steps=900, warmup=300, replay_size=2000, evaluate_every=900, evaluation_episodes=1
    )
    training = OnlineTraining(task_spec(f"gymnasium/{name}"), config, "mrq", 0)
    while training.steps < config.steps:
        training.advance()
    policy = training.policy({})

    def act(state):
        action = policy.act(torch.from_numpy(state)).numpy()
        return action[:, 0] if action.shape[1] == 1 else action.argmax(1) - 1.0

    found = mean_return(act)
    assert found > ENOUGH, (found, BEST, RANDOM)
