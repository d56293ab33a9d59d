"""State of an agent of Stable-Baselines3 between two rollouts, from which it continues bit for bit.

The library's own files are pickles, without the environment and the random generators. Here the current episode is
played again, from its seed.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

import numpy as np
import torch

from ...datasets.schema import Episode
from ...pipeline.errors import CheckpointError
from .environment import LibraryEnv

COUNTERS = (
    "num_timesteps", "_n_updates", "_episode_num", "_n_calls", "exploration_rate", "_current_progress_remaining",
)  # fmt: skip
"""Those of all algorithms; an agent has some."""

TRANSITIONS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
"""Arrays of a replay buffer."""


def agent_state(agent: Any, environment: LibraryEnv) -> dict[str, Any]:
    """Tensors and plain values only.

    Args:
        agent: before a rollout: its rollout buffer is empty.
        environment: the one that the agent plays in.
    """
    _, variables = agent._get_torch_save_params()
    generator = np.random.get_state(legacy=False)  # noqa: NPY002  that which the library uses
    replay = getattr(agent, "replay_buffer", None)
    return {
        "parameters": agent.get_parameters(),
        "variables": {name: getattr(agent, name).detach() for name in variables},
        "counters": {name: getattr(agent, name) for name in COUNTERS if hasattr(agent, name)},
        "returns": list(agent.ep_info_buffer),
        "replay": None if replay is None else _replay_state(replay),
        "number": environment.number,
        "actions": torch.from_numpy(np.array(environment.given)),
        "observation": torch.from_numpy(agent._last_obs),
        "first": torch.from_numpy(agent._last_episode_starts),
        "episodes": [_tensors(episode) for episode in environment.episodes],
        "torch": torch.get_rng_state(),
        "numpy": {**generator, "state": {**generator["state"], "key": generator["state"]["key"].tolist()}},
        "action_space": agent.action_space.np_random.bit_generator.state,
    }


def restore(agent: Any, environment: LibraryEnv, state: dict[str, Any]) -> None:
    """Continue from `state`, which `agent_state` gave of an agent of the same settings.

    Raises:
        CheckpointError: the environment takes another course than it did.
    """
    agent.set_parameters(state["parameters"], device="cpu")
    for name, value in state["variables"].items():
        getattr(agent, name).data = value
    for name, value in state["counters"].items():
        setattr(agent, name, value)
    # `learn` makes these only for a run that begins.
    agent.ep_info_buffer = deque(state["returns"], maxlen=agent._stats_window_size)
    agent.ep_success_buffer = deque(maxlen=agent._stats_window_size)
    if state["replay"] is not None:
        _restore_replay(agent.replay_buffer, state["replay"])
    environment.number = state["number"] - 1
    observation = agent.env.reset()
    for action in state["actions"].numpy():
        observation = agent.env.step(action[None])[0]
    if not np.array_equal(observation, state["observation"].numpy()):
        raise CheckpointError(
            f"task {environment.task.name!r}, episode {environment.number}, step {len(environment.given)}: replayed "
            "from its seed, the current episode ends in another observation than in the checkpoint. The environment or "
            "its version has changed, or its episodes do not depend on seeds only: resume with the same environment, "
            "or start from scratch"
        )
    agent._last_obs, agent._last_episode_starts = observation, state["first"].numpy()
    environment.episodes[:] = [_episode(saved) for saved in state["episodes"]]
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    agent.action_space.np_random.bit_generator.state = state["action_space"]


def _replay_state(replay: Any) -> dict[str, Any]:
    count = replay.size()
    arrays = {name: torch.from_numpy(getattr(replay, name)[:count]) for name in TRANSITIONS}
    return {"pos": replay.pos, "full": replay.full, **arrays}


def _restore_replay(replay: Any, saved: dict[str, Any]) -> None:
    replay.pos, replay.full = saved["pos"], saved["full"]
    for name in TRANSITIONS:
        getattr(replay, name)[: replay.size()] = saved[name].numpy()


def _tensors(episode: Episode) -> dict[str, Any]:
    values = dataclasses.asdict(episode)
    return {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in values.items()}


def _episode(saved: dict[str, Any]) -> Episode:
    values: dict[str, Any] = {name: value.numpy() if torch.is_tensor(value) else value for name, value in saved.items()}
    return Episode(**values)
