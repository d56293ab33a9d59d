"""Small stores for tests: episodes whose every number says which task, episode and time it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from orrery.datasets.schema import Behaviour, Episode, TaskSpec, TaskTable
from orrery.datasets.store import TaskStore, TaskWriter, finish_store


def numbered_episode(spec: TaskSpec, episode: int, length: int, terminated: bool = False) -> Episode:
    """observation[t] = (episode, t, 0, ...), action[t] = (t + 1) / 1000, reward[t] = 1000 * episode + t."""
    observations = np.zeros((length + 1, spec.observation_dim), np.float32)
    observations[:, 0] = episode
    observations[:, 1] = np.arange(length + 1)
    actions = np.repeat((np.arange(length, dtype=np.float32)[:, None] + 1) / 1000, spec.action_dim, 1)
    rewards = 1000 * episode + np.arange(length, dtype=np.float32)
    return Episode(observations, actions, rewards, terminated, label=f"episode {episode}")


def write_store(
    folder: Path,
    tasks: Sequence[tuple[TaskSpec, Sequence[Episode]]],
    behaviour: Behaviour = "exploration",
) -> TaskStore:
    table = TaskTable([spec for spec, _ in tasks])
    for spec, episodes in tasks:
        writer = TaskWriter(folder / spec.slug, spec, table.observation_dim, table.action_dim)
        writer.write(episodes, behaviour=behaviour, source={"made": "in a test"})
    finish_store(folder, table)
    return TaskStore.open(folder)


def point_mass_spec(name: str = "toy/point", **changes: object) -> TaskSpec:
    values = {"observation_dim": 2, "action_dim": 1, "episode_length": 25, "score_kind": "normalised", **changes}
    return TaskSpec(name, **values)  # type: ignore[arg-type]


def point_mass_episodes(spec: TaskSpec, count: int, seed: int = 0, length: int = 25) -> list[Episode]:
    """A point on a line: x' = x + 0.2 v, v' = 0.8 v + 0.4 a, reward exp(-4 x^2), actions held at random."""
    random = np.random.default_rng(seed)
    episodes = []
    for index in range(count):
        state = np.array([random.uniform(-1, 1), 0.0])
        observations, actions, rewards = [state], [], []
        for t in range(length):
            if t % 5 == 0:
                action = random.uniform(-1, 1, spec.action_dim)
            rewards.append(np.exp(-4 * state[0] ** 2))
            state = np.array([state[0] + 0.2 * state[1], 0.8 * state[1] + 0.4 * action[0]])
            observations.append(state)
            actions.append(action)
        observations_TO = np.zeros((length + 1, spec.observation_dim), np.float32)
        observations_TO[:, :2] = observations
        episodes.append(
            Episode(
                observations_TO, np.array(actions, np.float32), np.array(rewards, np.float32), False, label=f"e{index}"
            )
        )
    return episodes
