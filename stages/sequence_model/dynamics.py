"""Dynamics for imagination: one task of a sequence model, or of a differentiable simulator.

Dimension letters: H steps, R rollouts, O observation, A action, E noise, S state."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from ...datasets.schema import TaskSpec
from ...datasets.tasks.myriad import simulator
from ...datasets.tasks.myriad_dynamics import DifferentiableTask
from ...pipeline.errors import ConfigError, TaskError
from .networks import SequenceModel


class Dynamics(Protocol):
    """Dynamics of one task for imagined rollouts. Observations and actions have its own widths, environment units."""

    noise_dim: int
    """Standard normal numbers per action that `advance` and `predict` take; 0 if deterministic."""
    in_parallel: bool
    """Whether `predict` is cheaper than as many calls of `advance`."""

    def begin(self, start: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """First observations [R, O] and the carry of episodes that begin at `start` [R, ...]."""
        ...

    def advance(
        self, carry: Any, action_RA: torch.Tensor, noise_RE: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Any]:
        """Observations [R, O] after an action, and the next carry; noise defaults to 0."""
        ...

    def predict(
        self, start: torch.Tensor, action_RHA: torch.Tensor, noise_RHE: torch.Tensor | None = None
    ) -> torch.Tensor:
        """All later observations [R, H, O]."""
        ...

    def reward(self, observation: torch.Tensor, action: torch.Tensor, next_observation: torch.Tensor) -> torch.Tensor:
        """Rewards [...] of transitions [..., O], [..., A], [..., O]."""
        ...


class ModelDynamics:
    """One task of a frozen sequence model. A start is a first observation [R, O]."""

    def __init__(self, model: SequenceModel, task: str, reward: str) -> None:
        """Args:
            reward: `simulator`, the true one; `learned`; or `auto`, the true one where there is a simulator.
        Raises:
            ConfigError: the reward asked for does not exist.
        """
        self.model, self.task_id = model, model.table.id_of(task)
        self.spec, self.in_parallel = model.table[self.task_id], model.in_parallel
        self.noise_dim = model.noise_dim
        self.true_reward = _true_reward(self.spec, reward)
        if self.true_reward is None and not model.config.reward_head:
            raise ConfigError(
                f"task {task!r} has no differentiable reward and the sequence model no reward head: train one with "
                "pretrain.sequence.reward_head=true, or take a task of the suite `myriad`"
            )

    def begin(self, start: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return start, self.model.start(_pad(start, self.model.table.observation_dim), self._task(start))

    def advance(
        self, carry: Any, action_RA: torch.Tensor, noise_RE: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Any]:
        observation, carry = self.model.advance(carry, _pad(action_RA, self.model.table.action_dim), noise_RE)
        return observation[..., : self.spec.observation_dim], carry

    def predict(
        self, start: torch.Tensor, action_RHA: torch.Tensor, noise_RHE: torch.Tensor | None = None
    ) -> torch.Tensor:
        table = self.model.table
        first, actions = _pad(start, table.observation_dim), _pad(action_RHA, table.action_dim)
        return self.model.predict(first, actions, self._task(start), noise_RHE)[..., : self.spec.observation_dim]

    def reward(self, observation: torch.Tensor, action: torch.Tensor, next_observation: torch.Tensor) -> torch.Tensor:
        if self.true_reward is not None:
            return self.true_reward.reward(observation, action, next_observation)
        table = self.model.table
        before, after = (_pad(part, table.observation_dim) for part in (observation, next_observation))
        return self.model.reward(before, _pad(action, table.action_dim), after, self._task(before))

    def _task(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.full(rows.shape[:-1], self.task_id, device=rows.device)


class SimulatorDynamics:
    """The task's differentiable simulator in float64, with its environment's noise: the true gradient. A start is a
    state [R, S]."""

    in_parallel = False

    def __init__(self, spec: TaskSpec) -> None:
        """Raises a TaskError if the task has no differentiable simulator."""
        self.task = simulator(spec)
        self._deviation = float(spec.environment.get("noise", 0.0))
        # Of every state component but the time.
        self.noise_dim = self.task.initial_state(1).shape[1] - 1 if self._deviation else 0

    def begin(self, start: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return self.task.observe(start), start

    def advance(
        self, carry: Any, action_RA: torch.Tensor, noise_RE: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Any]:
        added = None if noise_RE is None or not self.noise_dim else self._deviation * noise_RE.double()
        state = self.task.next_state(carry, action_RA.double(), added)
        return self.task.observe(state), state

    def predict(
        self, start: torch.Tensor, action_RHA: torch.Tensor, noise_RHE: torch.Tensor | None = None
    ) -> torch.Tensor:
        observations, (_, carry) = [], self.begin(start)
        for t, action in enumerate(action_RHA.unbind(1)):
            observation, carry = self.advance(carry, action, None if noise_RHE is None else noise_RHE[:, t])
            observations.append(observation)
        return torch.stack(observations, 1)

    def reward(self, observation: torch.Tensor, action: torch.Tensor, next_observation: torch.Tensor) -> torch.Tensor:
        return self.task.reward(observation, action.double(), next_observation)


def _true_reward(spec: TaskSpec, reward: str) -> DifferentiableTask | None:
    if reward == "learned":
        return None
    try:
        return simulator(spec)
    except TaskError as error:
        if reward == "simulator":
            raise ConfigError(
                f"reward is simulator, but {error}; use reward=learned with a model that has a reward head"
            ) from error
        return None


def _pad(x: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(x, (0, width - x.shape[-1]))
