"""A plain perceptron as a policy: what a library's actor is, without that library.

Dimension letters: B observations, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...datasets.schema import TaskSpec
from ..layers.mlp import mlp
from ..policy.policy import StoredPolicy


@dataclass(frozen=True)
class MlpPolicyConfig:
    """What policy.json holds."""

    kind: str
    task: dict[str, Any]
    """The TaskSpec."""
    units: list[int]
    """Hidden widths, with ReLU after each."""
    trained_by: dict[str, Any]
    """Algorithm and seed, for the record."""


class MlpPolicy(StoredPolicy):
    """tanh of a perceptron of scaled observations."""

    mean_O: torch.Tensor
    scale_O: torch.Tensor

    Config = MlpPolicyConfig
    config: MlpPolicyConfig

    def __init__(self, config: MlpPolicyConfig) -> None:
        super().__init__(config)
        self.layers = mlp(self.task.observation_dim, config.units, self.task.action_dim, nn.ReLU)
        self.register_buffer("mean_O", torch.zeros(self.task.observation_dim))
        self.register_buffer("scale_O", torch.ones(self.task.observation_dim))

    @classmethod
    def from_layers(
        cls,
        linears: Sequence[nn.Linear],
        statistics: tuple[torch.Tensor, torch.Tensor],
        task: TaskSpec,
        trained_by: dict[str, Any],
    ) -> MlpPolicy:
        """From the linear layers of a trained actor, the last of which gives the action before the squash.

        Args:
            statistics: mean and scale of the observations that it was trained on, [O] each.
        """
        units = [linear.out_features for linear in linears[:-1]]
        policy = cls(MlpPolicyConfig("mlp", task.to_dict(), units, trained_by))
        own = [layer for layer in policy.layers if isinstance(layer, nn.Linear)]
        for mine, linear in zip(own, linears, strict=True):
            mine.load_state_dict(linear.state_dict())
        policy.mean_O.copy_(statistics[0])
        policy.scale_O.copy_(statistics[1])
        return policy.eval().requires_grad_(False)

    @torch.no_grad()
    def act(self, observation: torch.Tensor) -> torch.Tensor:
        """[B, O] float32, environment units -> [B, A] in [-1, 1]."""
        return torch.tanh(self.layers((observation - self.mean_O) / self.scale_O))
