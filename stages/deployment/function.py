"""A policy as one function of tensors, from an environment's observations to its actions: what is exported.

Dimension letters: B batch, O flat observation, A action components.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..policy.interface import Interface
from ..policy.policy import Policy


class DeployedPolicy(nn.Module):
    """Observations [B, ...] in the environment's units and types -> actions [B, ...] in the environment's.

    Continuous actions are float32 and cut at the environment's bounds; discrete ones are int64 numbers of choices.
    """

    middle_A: torch.Tensor
    half_A: torch.Tensor

    def __init__(self, policy: Policy, interface: Interface) -> None:
        super().__init__()
        self.policy: Any = policy
        self._index_start = interface.index_start
        self._observation_dim = interface.spec.observation_dim
        self._discrete = interface.spec.action_kind == "discrete"
        self._action_start = interface.action_start
        self._action_shape = interface.action_shape
        if not self._discrete:
            middle, half = interface.action_scale
            self.register_buffer("middle_A", torch.from_numpy(middle).float())
            self.register_buffer("half_A", torch.from_numpy(half).float())

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        action_BA = self.policy.act(self._flat(observation))
        if self._discrete:
            return action_BA.argmax(1) + self._action_start
        return (self.middle_A + self.half_A * action_BA.clamp(-1, 1)).reshape(-1, *self._action_shape)

    def _flat(self, observation: torch.Tensor) -> torch.Tensor:
        if self._index_start is not None:
            return F.one_hot(observation - self._index_start, self._observation_dim).float()
        return observation.reshape(-1, self._observation_dim).float()
