"""AWM for stochastic environments, with noise tokens in addition to actions.

    s^_{t+1} = g(s_1, (a_1, e_1), ..., (a_t, e_t)),    e_t ~ N(0, I)

A predicted mean (and variance) per step loses the correlation over steps: a state that noise has displaced stays
displaced. Here the noise at t enters as e_t and reaches all later predictions through the same token as the action,
with the same short gradient paths.

A one-step model, used for nothing else, infers e_t in the data:

    s_{t+1} - s_t = m(s_t, a_t) + d(s_t, a_t) e_t

m and d learn by maximum likelihood, and g from the resulting e_t. These are standard normal and independent of one
another as far as the state is fully observed and its noise Gaussian given state and action. Inferring them by a
variational posterior instead ends where e_t tells s_{t+1} itself: samples of a random walk then have a correlation of
0.23 between steps 2 and 6, where it is 0.58.

Dimension letters: B batch, T steps, O observation, A action; the noise has a number per observed column.
Source: our own, for the stochastic environments that Ma et al. (arXiv 2402.05290) leave open; innovations as the
noise of a process are Kailath's (1968).
"""

from __future__ import annotations

import torch
from torch import nn

from ...datasets.schema import TaskTable
from ..layers.mlp import mlp
from .config import SequenceModelConfig
from .sequence import ActionModel

LOG_STD_RANGE = (-6.0, 2.0)
"""Of one step's noise, scaled units."""


class StochasticActionModel(ActionModel):
    """`awm`, `rnn` or `ssm` with noise appended to each action; 0 by default."""

    moves_KO: torch.Tensor
    """1 for columns that change in the data."""

    def __init__(self, config: SequenceModelConfig, table: TaskTable) -> None:
        super().__init__(config, table)
        O, A = table.observation_dim, table.action_dim  # noqa: E741
        self.noise_dim = O
        self.register_buffer("moves_KO", torch.ones(len(table), O))
        self.embed_action = self._embedding(A + O)
        self.one_step_task = nn.Embedding(len(table), config.task_dim)
        self.one_step = mlp(O + A + config.task_dim, config.mlp_units, 2 * O)

    def innovations(
        self, observation_BSO: torch.Tensor, action_BTA: torch.Tensor, task_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the inferred noise [B, T, O], without gradient, and the one-step model's loss [B, T].

        The loss is the negative log-likelihood per predicted column, without its constant.

        Args:
            observation_BSO: [B, T + 1, O], scaled.
        """
        task = self.one_step_task(task_B)[:, None].expand(*action_BTA.shape[:2], -1)
        head = self.one_step(torch.cat([observation_BSO[:, :-1], action_BTA, task], -1))
        mean, raw = head.chunk(2, -1)
        log_std = raw.clamp(*LOG_STD_RANGE)
        counts_B1O = self.noisy_KO()[task_B][:, None]
        change = observation_BSO[:, 1:] - observation_BSO[:, :-1]
        noise = (change - mean) * torch.exp(-log_std) * counts_B1O
        loss = (0.5 * noise.square() + log_std * counts_B1O).sum(-1) / counts_B1O.sum(-1).clamp(min=1)
        return noise.detach(), loss

    def noisy_KO(self) -> torch.Tensor:
        """1 for columns with noise; padding, clocks and constants have none."""
        return self.observation_mask_KO * (self.clock_step_KO == 0) * self.moves_KO

    def with_noise(self, action: torch.Tensor, noise: torch.Tensor | None, task_B: torch.Tensor) -> torch.Tensor:
        counts = self.noisy_KO()[task_B]
        counts = counts[:, None] if action.dim() == 3 else counts
        noise = torch.zeros_like(counts).expand(*action.shape[:-1], -1) if noise is None else noise * counts
        return torch.cat([action, noise], -1)
