"""Whole episodes of one differentiable task in memory: simulated, and used to fit a small model.

For the online loop and for studies; datasets go through the store and the stage pretrain.

Dimension letters: N episodes, T steps, O observation, A action, S state, B batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict

from ...datasets.schema import TaskSpec, TaskTable
from ...datasets.tasks.myriad_dynamics import DifferentiableTask
from ..training.module import check_finite
from .config import SequenceLossConfig, SequenceModelConfig
from .kinds import build_model
from .losses import sequence_losses, set_task_statistics
from .networks import SequenceModel

CLIP_NORM = 20.0
"""Of the gradient of a model update."""


@dataclass(frozen=True)
class Episodes:
    """N episodes of equal length, float32, environment units."""

    observation_NTO: torch.Tensor
    """[N, T + 1, O]."""
    action_NTA: torch.Tensor
    reward_NT: torch.Tensor

    def __add__(self, other: Episodes) -> Episodes:
        return Episodes(
            torch.cat([self.observation_NTO, other.observation_NTO]),
            torch.cat([self.action_NTA, other.action_NTA]),
            torch.cat([self.reward_NT, other.reward_NT]),
        )

    def batch(self, size: int, generator: torch.Generator) -> TensorDict:
        """`size` episodes drawn with replacement, as `WindowSampler.batch` gives windows."""
        index = torch.randint(len(self.action_NTA), (size,), generator=generator)
        action = self.action_NTA[index]
        return TensorDict(
            {
                "observation": self.observation_NTO[index],
                "action": action,
                "reward": self.reward_NT[index],
                "valid": torch.ones(action.shape[:2], dtype=torch.bool),
                "task": torch.zeros(size, dtype=torch.int64),
            },
            batch_size=[size],
        )


def simulate(task: DifferentiableTask, action_NTA: torch.Tensor, start_NS: torch.Tensor | None = None) -> Episodes:
    """Simulate episodes with these actions, from `start_NS` or the task's start states (seed 0)."""
    if start_NS is None:
        start_NS = task.initial_state(len(action_NTA), torch.Generator().manual_seed(0))
    with torch.no_grad():
        observation, reward = play(task, action_NTA.double(), start_NS)
    return Episodes(observation.float(), action_NTA.float(), reward.float())


def play(
    task: DifferentiableTask, action_NTA: torch.Tensor, start_NS: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations [N, T + 1, O] and rewards [N, T] of an action sequence; gradients pass."""
    state, rewards = start_NS, []
    observations = [task.observe(state)]
    for action_NA in action_NTA.unbind(1):
        state = task.next_state(state, action_NA)
        observations.append(task.observe(state))
        rewards.append(task.reward(observations[-2], action_NA, observations[-1]))
    return torch.stack(observations, 1), torch.stack(rewards, 1)


def correlated_actions(
    count: int, length: int, action_dim: int, generator: torch.Generator, time_scale: float = 10.0
) -> torch.Tensor:
    """Exploration [N, T, A]: an offset per episode plus first-order autoregressive noise, clipped to [-1, 1]."""
    keep = torch.exp(torch.tensor(-1 / time_scale))
    state = torch.randn(count, action_dim, generator=generator)
    offset, actions = torch.rand(count, action_dim, generator=generator) * 2 - 1, []
    for _ in range(length):
        actions.append((offset + 0.5 * state).clamp(-1, 1))
        noise = torch.randn(count, action_dim, generator=generator)
        state = keep * state + torch.sqrt(1 - keep**2) * noise
    return torch.stack(actions, 1)


class ModelFit:
    """One sequence model of one task, fitted to episodes by Adam."""

    def __init__(self, spec: TaskSpec, config: SequenceModelConfig, lr: float, seed: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model: SequenceModel = build_model(config, TaskTable([spec]))
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=lr)
        self._generator = torch.Generator().manual_seed(seed)

    def set_statistics(self, episodes: Episodes) -> None:
        """Set the scaling from these episodes; call before the first update."""
        before, after = episodes.observation_NTO[:, :-1], episodes.observation_NTO[:, 1:]
        rewards = episodes.reward_NT.flatten().double()
        set_task_statistics(self.model, 0, before.flatten(0, 1).double(), after.flatten(0, 1).double(), rewards)

    def update(self, episodes: Episodes, batch_size: int, loss: SequenceLossConfig | None = None) -> float:
        """One Adam step on a batch of episodes; returns the prediction loss."""
        batch = episodes.batch(batch_size, self._generator)
        losses = sequence_losses(self.model, batch, loss or SequenceLossConfig(), self._generator)
        check_finite(losses, 0)
        self._optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self._optimizer.step()
        return float(losses["prediction"].detach())


def fit_model(
    spec: TaskSpec,
    episodes: Episodes,
    config: SequenceModelConfig,
    updates: int,
    *,
    batch_size: int = 32,
    lr: float = 1e-3,
    seed: int = 0,
) -> SequenceModel:
    """Return a frozen model after `updates` updates."""
    fit = ModelFit(spec, config, lr, seed)
    fit.set_statistics(episodes)
    for _ in range(updates):
        fit.update(episodes, batch_size)
    return fit.model.eval().requires_grad_(False)
