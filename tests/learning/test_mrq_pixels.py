"""MR.Q learns from images: a reach in one dimension, drawn as two bars.

The upper bar is as long as the state, the lower as the goal: s' = clip(s + 0.3 a, -1, 1), reward exp(-4 (s' - goal)^2),
12 steps from s, goal ~ U(-1, 1). Random actions earn 4.9 on average, going straight there 11.2. Images are shifted
at random by up to 4 pixels, a tenth of the state's range, as published.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from orrery.datasets.tasks import task_spec
from orrery.stages.mrq.config import LearnConfig, MrqOnlineConfig, NetworkConfig
from orrery.stages.mrq.online import OnlineTraining

DECISIONS = 12


class Reach(gymnasium.Env):
    observation_space = spaces.Box(0, 255, (1, 84, 84), np.uint8)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.state, self.goal = np.random.default_rng(seed).uniform(-1, 1, 2)
        return self._image(), {}

    def step(self, action: np.ndarray) -> Any:
        self.state = float(np.clip(self.state + 0.3 * action[0], -1, 1))
        return self._image(), float(np.exp(-4 * (self.state - self.goal) ** 2)), False, False, {}

    def _image(self) -> np.ndarray:
        image = np.zeros((1, 84, 84), np.uint8)
        for position, rows in ((self.state, slice(42)), (self.goal, slice(42, 84))):
            image[0, rows, : round(42 + 38 * position)] = 255
        return image


gymnasium.register("OrreryPixelReach-v0", entry_point=Reach, max_episode_steps=DECISIONS)


def mean_return(act, episodes=100):
    environment, total = Reach(), 0.0
    for seed in range(episodes):
        image, _ = environment.reset(seed=seed)
        for _ in range(DECISIONS):
            image, reward, *_ = environment.step(act(environment, image))
            total += reward
    return total / episodes


@pytest.mark.slow
def test_a_reach_is_learned_from_images():
    best = mean_return(lambda env, _: np.clip([(env.goal - env.state) / 0.3], -1, 1))
    noise = np.random.default_rng(0)
    random = mean_return(lambda env, _: noise.uniform(-1, 1, 1))
    learn = LearnConfig(
        networks=NetworkConfig(48, 48, 24, 48, 48, 48),
        batch_size=16,
        period=50,
        encoder_horizon=2,
        discount=0.8,
        encoder_lr=1e-3,
        value_lr=1e-3,
        policy_lr=1e-3,
    )
    config = MrqOnlineConfig(
        learn=learn, steps=1100, warmup=400, frames=1, replay_size=3000, evaluate_every=1100, evaluation_episodes=1
    )
    training = OnlineTraining(task_spec("gymnasium/OrreryPixelReach-v0"), config, "mrq", 0)
    while training.steps < config.steps:
        training.advance()
    policy = training.policy({})
    found = mean_return(lambda _, image: policy.act(torch.from_numpy(image.reshape(1, -1)).float())[0].numpy())
    # Returns of random actions spread by 3.8 from episode to episode, so the mean of 100 by 0.4; the margin is 4.7.
    assert found > random + 0.75 * (best - random), (found, best, random)
