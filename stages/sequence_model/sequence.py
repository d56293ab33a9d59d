"""Action world models: s^_{t+1} = g(s_1, a_{1:t}) with g a transformer, a recurrent or a state-space backbone.

Tokens are the task, the first observation, then one action each; the output at an action's token is decoded to the
observation after it. No predicted observation is ever an input.

Dimension letters: B batch, N tokens, T steps, O observation, A action.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...datasets.schema import TaskTable
from ..layers.mlp import mlp
from ..layers.transformer import Transformer, embedding_layer
from .config import SequenceModelConfig
from .networks import SequenceModel
from .recurrent import Recurrent, StateSpace


class ActionModel(SequenceModel):
    """AWM with the backbone that `config.kind` names; a transformer for `awm` and `rerooted`."""

    in_parallel = True

    def __init__(self, config: SequenceModelConfig, table: TaskTable) -> None:
        super().__init__(config, table)
        self.task_token = nn.Embedding(len(table), config.width)
        nn.init.normal_(self.task_token.weight, std=0.02)
        self.embed_first, self.embed_action = self._embedding(table.observation_dim), self._embedding(table.action_dim)
        # Each maps tokens [B, N, W] to outputs [B, N, W], or has `step` take them one by one with a carry.
        self.backbone: Any
        if config.kind == "rnn":
            self.backbone = Recurrent(config.width)
        elif config.kind == "ssm":
            self.backbone = StateSpace(config.width, config.layers, config.states)
        else:
            self.backbone = Transformer(config.width, config.layers, config.heads, self._span() + 2)
        self.decoder = mlp(config.width, config.mlp_units, table.observation_dim, nn.ReLU)

    def _embedding(self, in_dim: int) -> nn.Module:
        if self.config.kind == "rnn":
            return mlp(in_dim, self.config.mlp_units, self.config.width, nn.ReLU)
        return embedding_layer(in_dim, self.config.width)

    def _span(self) -> int:
        """Maximum number of actions in one pass of the backbone."""
        return self.config.horizon

    def fit(self, observation_BTO: torch.Tensor, action_BTA: torch.Tensor, task_B: torch.Tensor) -> torch.Tensor:
        return self._all_at_once(observation_BTO[:, 0], action_BTA, task_B)

    def _all_at_once(self, first_BO: torch.Tensor, action_BTA: torch.Tensor, task_B: torch.Tensor) -> torch.Tensor:
        """Decoded outputs [B, T, O], clocks not set."""
        start = torch.stack([self.task_token(task_B), self.embed_first(first_BO)], 1)
        return self.decoder(self.backbone(torch.cat([start, self.embed_action(action_BTA)], 1))[:, 2:])

    def _predict(self, first_BO: torch.Tensor, action_BTA: torch.Tensor, task_B: torch.Tensor) -> torch.Tensor:
        return self.complete_all(self._all_at_once(first_BO, action_BTA, task_B), first_BO, task_B)

    def _begin(self, first_BO: torch.Tensor, task_B: torch.Tensor) -> Any:
        _, carry = self.backbone.step(self.task_token(task_B), None)
        return self.backbone.step(self.embed_first(first_BO), carry)[1]

    def _advance(self, carry: Any, action_BA: torch.Tensor, task_B: torch.Tensor) -> tuple[torch.Tensor, Any]:
        output, carry = self.backbone.step(self.embed_action(action_BA), carry)
        return self.decoder(output), carry
