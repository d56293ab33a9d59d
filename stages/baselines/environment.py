"""A task's environment as Stable-Baselines3 takes it, which keeps what was played and can play it again."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from ...datasets.schema import Episode, TaskSpec
from ...datasets.tasks import make_environment
from ...pipeline.seeding import derive_seed


class LibraryEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Choices by number. With statistics, observations and rewards in standard deviations, and time limits as ends.

    Every episode has its own seed, whatever the library asks for, so that it can be played again alone.
    """

    def __init__(
        self,
        spec: TaskSpec,
        statistics: tuple[np.ndarray, np.ndarray, float] | None,
        seed: int = 0,
        record: bool = False,
    ) -> None:
        """Args:
        statistics: mean and scale of observations [O], and scale of rewards; None leaves both as they are.
        seed: of all episodes.
        record: keep the episodes.
        """
        super().__init__(make_environment(spec))
        self.task, self._seed = spec, seed
        if spec.action_kind == "discrete":
            self.action_space = gymnasium.spaces.Discrete(spec.action_dim)
            self._choices = np.eye(spec.action_dim, dtype=np.float32)
        self._discrete, self._statistics = spec.action_kind == "discrete", statistics
        self._record = record
        self.episodes: list[Episode] = []
        """Complete ones, as the task's environment had them."""
        self.number = -1
        """Of the current episode, counted from 0."""
        self.given: list[Any] = []
        """Actions of the current episode, as the library gave them."""
        self._observations: list[Any] = []
        self._actions: list[Any] = []
        self._rewards: list[float] = []
        self._success: list[bool] = []

    def reset(self, **given: Any) -> Any:
        self.number += 1
        self.given = []
        seed = derive_seed("baselines episode", self._seed, self.number) % 2**31
        observation, info = self.env.reset(**{**given, "seed": seed})
        self._observations, self._actions, self._rewards, self._success = [observation], [], [], []
        return self._scaled(observation), info

    def step(self, action: Any) -> Any:
        self.given.append(np.copy(action))
        action = self._choices[int(action)] if self._discrete else action
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._record:
            self._observations.append(observation)
            self._actions.append(np.array(action, np.float32))
            self._rewards.append(float(reward))
            self._success.append(bool(info.get("success")))
            if terminated or truncated:
                self.episodes.append(self._episode(bool(terminated)))
        if self._statistics is not None:
            reward, terminated, truncated = float(reward) / self._statistics[2], terminated or truncated, False
        return self._scaled(observation), reward, terminated, truncated, info

    def _episode(self, terminated: bool) -> Episode:
        observations, rewards = np.stack(self._observations).astype(np.float32), np.array(self._rewards, np.float32)
        return Episode(observations, np.stack(self._actions), rewards, terminated, np.array(self._success))

    def _scaled(self, observation: Any) -> Any:
        if self._statistics is None:
            return observation
        mean, scale, _ = self._statistics
        return ((np.asarray(observation, np.float32) - mean) / scale).astype(np.float32)
