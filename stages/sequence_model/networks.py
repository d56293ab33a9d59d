"""Sequence models: from a first observation and a sequence of actions to all later observations.

    markov      s^_{t+1} = s^_t + f(s^_t, a_t)          gradient path of length t through predicted states
                or f(s^_t, a_t)
    hwm         s^_{t+1} = h(s^_{1:t}, a_{1:t})         the same path, and many longer ones
    awm, rnn,   s^_{t+1} = g(s_1, a_{1:t})              predicted states are never inputs: the path is that of g
    ssm
    rerooted    an awm from s^_{1 + K floor(t / K)}     path of length t / K through predicted states

`SequenceModel` is what they share: scaling, the clock, masks, the reward head, files. A subclass predicts in scaled
units, where every observation column has mean 0 and standard deviation 1 over its task's data.

Dimension letters: B batch, T steps, O observation, A action, K tasks, N tokens, W width.
Source: Ma et al. (arXiv 2402.05290). What differs: normalised observations, a task token in front of the sequence, the
reward of a transition (s, a, s') rather than of (s, a).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...datasets.schema import TaskTable
from ...pipeline.checkpoint import save_weights
from ...pipeline.errors import ConfigError
from ..layers.gradients import scale_gradient
from ..layers.mlp import mlp
from .config import SETTINGS, SequenceModelConfig, check_horizon

LOG_STD = (-3.0, 1.0)
"""Bounds of ln(standard deviation) that a Markov model predicts, relative to the size of what it predicts. Columns that
are fitted nearly exactly drown all others in the likelihood: with -5, differences on cartpole-swingup (800 steps) had
R2 -4.2 of the reward 20 steps ahead, with -3 0.88, as much as squared error."""


class SequenceModel(nn.Module, ABC):
    """One model for all tasks of a table. Observations and actions are padded to the table's widths.

    A clock is an observation column that grows by one at each step, in environment units: it is counted from
    the first observation, not predicted.
    """

    observation_mean_KO: torch.Tensor
    observation_scale_KO: torch.Tensor
    observation_mask_KO: torch.Tensor
    action_mask_KA: torch.Tensor
    clock_step_KO: torch.Tensor
    reward_mean_K: torch.Tensor
    reward_scale_K: torch.Tensor

    noise_dim = 0
    """Numbers of standard normal noise beside each action; 0 if the model predicts one course of events."""
    in_parallel = False
    """Whether `predict` is one pass over all steps."""

    def __init__(self, config: SequenceModelConfig, table: TaskTable) -> None:
        super().__init__()
        self.config, self.table = config, table
        K, O, A = len(table), table.observation_dim, table.action_dim  # noqa: E741
        if config.reward_head:
            self.task_embedding = nn.Embedding(K, config.task_dim)
            self.reward_layers = mlp(2 * O + A + config.task_dim, config.mlp_units, 1)
        self.register_buffer("observation_mean_KO", torch.zeros(K, O))
        self.register_buffer("observation_scale_KO", torch.ones(K, O))
        self.register_buffer("clock_step_KO", torch.zeros(K, O))
        self.register_buffer("reward_mean_K", torch.zeros(K))
        self.register_buffer("reward_scale_K", torch.ones(K))
        own = torch.tensor([[column < task.observation_dim for column in range(O)] for task in table])
        self.register_buffer("observation_mask_KO", own.float(), False)
        self.register_buffer("action_mask_KA", torch.from_numpy(table.action_mask()), False)

    # What a subclass gives, in scaled units and with masked actions.

    @abstractmethod
    def fit(self, observation_BTO: torch.Tensor, action_BTA: torch.Tensor, task_B: torch.Tensor) -> torch.Tensor:
        """Decoded observations 1..T, [B, T, O], as training compares them with the data's; not completed.

        Reads observation t of the data only where the kind of model does: all of them (markov, hwm), every K-th
        (rerooted), the first (awm, rnn, ssm).
        """

    def fit_distribution(
        self, observation_BTO: torch.Tensor, action_BTA: torch.Tensor, task_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the result of `fit`, and ln of its standard deviation [B, T, O] if the model predicts one."""
        return self.fit(observation_BTO, action_BTA, task_B), None

    @abstractmethod
    def _begin(self, first_BO: torch.Tensor, task_B: torch.Tensor) -> Any:
        """The carry of an unroll before its first action."""

    @abstractmethod
    def _advance(self, carry: Any, action_BA: torch.Tensor, task_B: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Return the decoded next observation [B, O], before `complete`, and the next carry."""

    def _predict(self, first_BO: torch.Tensor, action_BTA: torch.Tensor, task_B: torch.Tensor) -> torch.Tensor:
        carry = self.start_scaled(first_BO, task_B)
        predicted = []
        for action_BA in action_BTA.unbind(1):
            observation_BO, carry = self.advance_scaled(carry, action_BA)
            predicted.append(observation_BO)
        return torch.stack(predicted, 1)

    # What everybody uses.

    def predict(
        self,
        observation_BO: torch.Tensor,
        action_BTA: torch.Tensor,
        task_B: torch.Tensor,
        noise_BTE: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Open-loop predictions of all later observations, environment units.

        Args:
            observation_BO: [B, O], the first observation; padded columns are 0.
            action_BTA: [B, T, A] in [-1, 1]; padded components are ignored.
            task_B: [B] int64.
            noise_BTE: [B, T, E] standard normal, with E the noise_dim of the model; None is 0.
        Returns:
            [B, T, O]; entry t is the observation after action t, padded columns 0.
        Raises:
            ConfigError: T is longer than the positions that the model has learned.
        """
        self.check_horizon(action_BTA.shape[1])
        taken = self.with_noise(action_BTA * self.action_mask_KA[task_B][:, None], noise_BTE, task_B)
        return self.unscale(self._predict(self.scale(observation_BO, task_B), taken, task_B), task_B)

    def start(self, observation_BO: torch.Tensor, task_B: torch.Tensor) -> Any:
        """The carry from which `advance` unrolls step by step; it gives the same numbers as `predict`."""
        return self.start_scaled(self.scale(observation_BO, task_B), task_B)

    def advance(
        self, carry: Any, action_BA: torch.Tensor, noise_BE: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Any]:
        """Observation [B, O] after the action [B, A] in environment units, and the carry for the next step."""
        task_B = carry[2]
        taken = self.with_noise(action_BA * self.action_mask_KA[task_B], noise_BE, task_B)
        observation_BO, carry = self.advance_scaled(carry, taken)
        return self.unscale(observation_BO, task_B), carry

    def with_noise(self, action: torch.Tensor, noise: torch.Tensor | None, task_B: torch.Tensor) -> torch.Tensor:
        """Return the inputs of tokens: actions [B, A] or [B, T, A], with the noise of a stochastic model appended."""
        return action

    def start_scaled(self, first_BO: torch.Tensor, task_B: torch.Tensor) -> tuple[Any, torch.Tensor, torch.Tensor, int]:
        """(carry of the subclass, first observation, task, steps so far)."""
        return self._begin(first_BO, task_B), first_BO, task_B, 0

    def advance_scaled(self, carry: Any, action_BA: torch.Tensor) -> tuple[torch.Tensor, Any]:
        inner, first_BO, task_B, steps = carry
        self.check_horizon(steps + 1)
        observation_BO, inner = self._advance(inner, action_BA, task_B)
        return self.complete(observation_BO, first_BO, steps + 1, task_B), (inner, first_BO, task_B, steps + 1)

    def reward(
        self, observation: torch.Tensor, action: torch.Tensor, next_observation: torch.Tensor, task: torch.Tensor
    ) -> torch.Tensor:
        """Learned reward of transitions, environment units per step.

        Args:
            observation, next_observation: [..., O]; action: [..., A]; task: [...] int64.
        Returns:
            [...].
        Raises:
            ConfigError: the model has no reward head.
        """
        if not self.config.reward_head:
            raise ConfigError(
                "this sequence model was trained without a reward head; pretrain with "
                "pretrain.sequence.reward_head=true, or use a task whose simulator provides the reward"
            )
        scaled = self.reward_scaled(self.scale(observation, task), action, self.scale(next_observation, task), task)
        return scaled * self.reward_scale_K[task] + self.reward_mean_K[task]

    def reward_scaled(
        self, observation: torch.Tensor, action: torch.Tensor, next_observation: torch.Tensor, task: torch.Tensor
    ) -> torch.Tensor:
        """`reward` from scaled observations, in standard deviations from its mean."""
        masked = action * self.action_mask_KA[task]
        return self.reward_layers(torch.cat([observation, masked, next_observation, self.task_embedding(task)], -1))[
            ..., 0
        ]

    def scale(self, observation: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        """Environment units [..., O] to scaled units; padded columns are 0 in both. `task` has as many leading
        dimensions as `observation`, or fewer."""
        mean, scale, mask = (
            _expand(values[task], observation)
            for values in (self.observation_mean_KO, self.observation_scale_KO, self.observation_mask_KO)
        )
        return (observation - mean) / scale * mask

    def unscale(self, scaled: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        """Inverse of `scale`."""
        mean, scale, mask = (
            _expand(values[task], scaled)
            for values in (self.observation_mean_KO, self.observation_scale_KO, self.observation_mask_KO)
        )
        return (scaled * scale + mean) * mask

    def complete(
        self, decoded: torch.Tensor, first_BO: torch.Tensor, steps: torch.Tensor | int, task_B: torch.Tensor
    ) -> torch.Tensor:
        """An observation from a decoder's output [B, ..., O], scaled: padded columns 0, clocks those of `first_BO`,
        `steps` steps later."""
        step = _expand(self.clock_step_KO[task_B], decoded)
        counted = torch.where(step > 0, _expand(first_BO, decoded) + step * steps, decoded)
        return counted * _expand(self.observation_mask_KO[task_B], decoded)

    def complete_all(self, decoded_BTO: torch.Tensor, first_BO: torch.Tensor, task_B: torch.Tensor) -> torch.Tensor:
        """The same for steps 1..T."""
        steps = torch.arange(1, decoded_BTO.shape[1] + 1, device=decoded_BTO.device)[:, None]
        return self.complete(decoded_BTO, first_BO, steps, task_B)

    def check_horizon(self, steps: int) -> None:
        """Raise a ConfigError if the model cannot predict this many steps."""
        limit, model = self.config.longest_prediction(), f"the sequence model ({self.config.kind})"
        check_horizon(steps, limit, "the horizon of a prediction", model, *SETTINGS)

    def save(self, folder: Path) -> None:
        """Write sequence_model.safetensors, sequence_model.json and tasks.json."""
        save_weights(folder, "sequence_model", self.state_dict(), self.config)
        (folder / "tasks.json").write_text(self.table.to_json())


def _expand(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Insert dimensions before the last of `values` [B, O] until it has as many as `like` [B, ..., O]."""
    return values.reshape(*values.shape[:-1], *[1] * (like.dim() - values.dim()), values.shape[-1])


class MarkovModel(SequenceModel):
    """A model of one step, s^_{t+1} ~ N(mu, std^2) with f an MLP of (s^_t, a_t, task), in scaled units:

        target difference    mu = s^_t + scale * f,  scale the typical size of a difference of the column
        target next_state    mu = f,                 scale = 1
        likelihood mse       std is the same everywhere, so that the likelihood is the squared error
        likelihood gaussian  f has a second output g per column: ln std = ln scale + g, g within `LOG_STD`

    Predictions are of the mean. Sources: Deisenroth and Rasmussen (2011), section 2.1, for differences and likelihood;
    Chua et al. (arXiv 1805.12114), section 4, for networks that give mean and deviation.
    """

    difference_scale_KO: torch.Tensor

    def __init__(self, config: SequenceModelConfig, table: TaskTable) -> None:
        super().__init__(config, table)
        self.dynamics_task = nn.Embedding(len(table), config.task_dim)
        in_dim = table.observation_dim + table.action_dim + config.task_dim
        outputs = 2 if config.likelihood == "gaussian" else 1
        self.dynamics = mlp(in_dim, config.mlp_units, outputs * table.observation_dim)
        self.register_buffer("difference_scale_KO", torch.ones(len(table), table.observation_dim))

    def fit(self, observation_BTO: torch.Tensor, action_BTA: torch.Tensor, task_B: torch.Tensor) -> torch.Tensor:
        return self.fit_distribution(observation_BTO, action_BTA, task_B)[0]

    def fit_distribution(
        self, observation_BTO: torch.Tensor, action_BTA: torch.Tensor, task_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self._step(observation_BTO, action_BTA, task_B[:, None].expand(observation_BTO.shape[:2]))

    def next_distribution(
        self, observation_BO: torch.Tensor, action_BA: torch.Tensor, task_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation [B, O] of the next observation, environment units; 0 if nothing is random:
        everywhere with likelihood mse, in clocks and in padded columns always."""
        scaled_BO = self.scale(observation_BO, task_B)
        decoded_BO, log_std_BO = self._step(scaled_BO, action_BA * self.action_mask_KA[task_B], task_B)
        mean_BO = self.unscale(self.complete(decoded_BO, scaled_BO, 1, task_B), task_B)
        if log_std_BO is None:
            return mean_BO, torch.zeros_like(mean_BO)
        random_BO = self.observation_mask_KO[task_B] * (self.clock_step_KO[task_B] == 0)
        return mean_BO, log_std_BO.exp() * self.observation_scale_KO[task_B] * random_BO

    def _step(
        self, observation: torch.Tensor, action: torch.Tensor, task: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mean of the next observation, and ln of its standard deviation with likelihood gaussian."""
        outputs = self.dynamics(torch.cat([observation, action, self.dynamics_task(task)], -1))
        difference = self.config.target == "difference"
        scale = self.difference_scale_KO[task] if difference else torch.ones_like(observation)
        log_std = None
        if self.config.likelihood == "gaussian":
            outputs, raw = outputs.chunk(2, -1)
            low, high = LOG_STD
            log_std = scale.log() + low + 0.5 * (high - low) * (torch.tanh(raw) + 1)
        return (observation if difference else 0) + scale * outputs, log_std

    def _begin(self, first_BO: torch.Tensor, task_B: torch.Tensor) -> torch.Tensor:
        return first_BO

    def _advance(
        self, carry: torch.Tensor, action_BA: torch.Tensor, task_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        following_BO, _ = self._step(carry, action_BA, task_B)
        following_BO = self.complete(following_BO, carry, 1, task_B)
        return following_BO, scale_gradient(following_BO, self.config.feedback_gradient)
