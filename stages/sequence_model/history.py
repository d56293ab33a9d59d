"""HWM: a transformer over the history of states and actions that takes its own predictions as inputs.

Dimension letters: B batch, T steps, O observation, A action.
Source: Ma et al. (arXiv 2402.05290).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...datasets.schema import TaskTable
from ..layers.gradients import scale_gradient
from ..layers.mlp import mlp
from ..layers.transformer import Transformer, embedding_layer
from .config import SequenceModelConfig
from .networks import SequenceModel


class HistoryModel(SequenceModel):
    """HWM: tokens are the task, then (s_t, a_t) of each step; a prediction is the next token's observation."""

    def __init__(self, config: SequenceModelConfig, table: TaskTable) -> None:
        super().__init__(config, table)
        self.task_token = nn.Embedding(len(table), config.width)
        self.embed = embedding_layer(table.observation_dim + table.action_dim, config.width)
        self.backbone = Transformer(config.width, config.layers, config.heads, config.horizon + 1)
        self.decoder = mlp(config.width, config.mlp_units, table.observation_dim, nn.ReLU)
        nn.init.normal_(self.task_token.weight, std=0.02)

    def fit(self, observation_BTO: torch.Tensor, action_BTA: torch.Tensor, task_B: torch.Tensor) -> torch.Tensor:
        steps = self.embed(torch.cat([observation_BTO, action_BTA], -1))
        tokens = torch.cat([self.task_token(task_B)[:, None], steps], 1)
        return self.decoder(self.backbone(tokens)[:, 1:])

    def _begin(self, first_BO: torch.Tensor, task_B: torch.Tensor) -> tuple[object, torch.Tensor]:
        return self.backbone.step(self.task_token(task_B), None)[1], first_BO

    def _advance(self, carry: Any, action_BA: torch.Tensor, task_B: torch.Tensor) -> tuple[torch.Tensor, Any]:
        cache, observation_BO = carry
        output, cache = self.backbone.step(self.embed(torch.cat([observation_BO, action_BA], -1)), cache)
        following_BO = self.complete(self.decoder(output), observation_BO, 1, task_B)
        return following_BO, (cache, scale_gradient(following_BO, self.config.feedback_gradient))
