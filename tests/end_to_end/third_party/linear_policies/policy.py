"""A policy of kind `linear`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from orrery.stages.policy.policy import StoredPolicy


@dataclass(frozen=True)
class LinearPolicyConfig:
    """What policy.json holds."""

    kind: str
    task: dict[str, Any]
    trained_by: dict[str, Any]


class LinearPolicy(StoredPolicy):
    """A linear map of the observation and 1."""

    weight_OA: torch.Tensor
    """[O + 1, A]; the last row is the offset."""

    Config = LinearPolicyConfig

    def __init__(self, config: LinearPolicyConfig) -> None:
        super().__init__(config)
        self.register_buffer("weight_OA", torch.zeros(self.task.observation_dim + 1, self.task.action_dim))

    def act(self, observation: torch.Tensor) -> torch.Tensor:
        """[B, O] -> [B, A] in [-1, 1]."""
        return (observation @ self.weight_OA[:-1] + self.weight_OA[-1]).clamp(-1, 1)
