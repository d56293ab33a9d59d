"""What the tests of MR.Q share: small settings, environments of images and of switches, and stages' contexts."""

from __future__ import annotations

import dataclasses
import logging

import gymnasium
import numpy as np
from gymnasium import spaces
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.stage import Context
from orrery.stages.mrq.config import LearnConfig, MrqConfig, MrqOnlineConfig, NetworkConfig

SMALL = NetworkConfig(12, 12, 6, 10, 10, 10, num_bins=9, bin_limit=3.0)
LEARN = LearnConfig(networks=SMALL, batch_size=8, period=4)
ONLINE = MrqOnlineConfig(
    learn=LEARN, steps=60, warmup=30, replay_size=200, evaluate_every=1000, evaluation_episodes=1, accelerator="cpu"
)
OFFLINE = MrqConfig(learn=LEARN, encoder_updates=8, updates=10, log_every=5, checkpoint_every=3, accelerator="cpu")
CARTPOLE, PENDULUM = "gymnasium/CartPole-v1", "gymnasium/Pendulum-v1"


class Images(gymnasium.Env):
    """Two frames of one channel, stacked; the newest frame's pixels are the number of steps so far."""

    def __init__(self, size: int) -> None:
        self.observation_space = spaces.Box(0, 255, (2, size, size), np.uint8)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)

    def _stack(self):
        size = self.observation_space.shape[1]
        return np.stack([np.full((size, size), max(self._time + back, 0), np.uint8) for back in (-1, 0)])

    def reset(self, *, seed=None, options=None):
        self._time = 0
        return self._stack(), {}

    def step(self, action):
        self._time += 1
        return self._stack(), 1.0, False, False, {}


class Switches(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.MultiDiscrete([3, 3])


gymnasium.register("OrreryImages84-v0", entry_point=Images, kwargs={"size": 84}, max_episode_steps=9)
gymnasium.register("OrreryImages96-v0", entry_point=Images, kwargs={"size": 96}, max_episode_steps=9)
gymnasium.register("OrrerySwitches-v0", entry_point=Switches)


def run_to(training, steps):
    while training.steps < steps:
        training.advance()
    return training


def context_of(folder, name, **inputs):
    (folder / name).mkdir(parents=True)
    found = {key: [value] if value else [] for key, value in inputs.items()}
    return Context(folder / name, found, 1, 1, logging.getLogger("test"), ConsoleProgress())


def made(folder):
    folder.mkdir()
    return folder


def with_frames(frames):
    small = dataclasses.replace(LEARN, batch_size=2)
    return dataclasses.replace(ONLINE, frames=frames, learn=small, warmup=20)
