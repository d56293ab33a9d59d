"""Policies on observations: tanh-squashed Gaussians while they are trained, tanh(mean) when they are used.

Dimension letters: M members (policies trained together), B rollouts of a member, O observation, A action.
Source: Ma et al. (arXiv 2402.05290), with normalised inputs and a LayerNorm after each activation, as in the project's
other actors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...datasets.schema import TaskSpec
from ..layers.mlp import StackedMLP
from ..policy.policy import StoredPolicy

MIN_STD = 0.001
"""Of the Gaussian before the squash."""


class StackedPolicy(nn.Module):
    """M policies of one task, each with weights of its own; all read observations with the same scaling."""

    mean_O: torch.Tensor
    scale_O: torch.Tensor

    def __init__(self, members: int, observation_dim: int, action_dim: int, units: tuple[int, ...]) -> None:
        super().__init__()
        self.mlp = StackedMLP(members, observation_dim, units, 2 * action_dim, "silu")
        self.register_buffer("mean_O", torch.zeros(observation_dim))
        self.register_buffer("scale_O", torch.ones(observation_dim))

    def head(self, observation_MBO: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation [M, B, A] before the squash, from observations in environment units."""
        mean, raw = self.mlp((observation_MBO.to(self.mean_O) - self.mean_O) / self.scale_O).chunk(2, -1)
        return mean, F.softplus(raw) + MIN_STD

    def sample(self, observation_MBO: torch.Tensor, noise_MBA: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Reparameterised actions tanh(mean + std noise) [M, B, A], and an estimate of their entropy [M, B]."""
        mean, std = self.head(observation_MBO)
        raw = mean + std * noise_MBA
        return torch.tanh(raw), squashed_entropy(raw, std)

    def act(self, observation_MBO: torch.Tensor) -> torch.Tensor:
        """tanh(mean), [M, B, A]."""
        return torch.tanh(self.head(observation_MBO)[0])


def squashed_entropy(raw: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Entropy of tanh(x), x ~ N(mean, std^2), estimated at a sample x = raw; nats, summed over the last dimension.

        H = sum_a [ ln(std_a) + ln(2 pi e) / 2 + ln(1 - tanh(x_a)^2) ]

    The last term is written 2 (ln 2 - x - softplus(-2 x)), which does not overflow.
    """
    jacobian = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
    return (torch.log(std) + 0.5 * math.log(2 * math.pi * math.e) + jacobian).sum(-1)


@dataclass(frozen=True)
class StatePolicyConfig:
    """What policy.json holds."""

    kind: str
    task: dict[str, Any]
    """The TaskSpec."""
    units: list[int]
    """Hidden widths."""
    trained_by: dict[str, Any]
    """Algorithm and seed, for the record."""


class StatePolicy(StoredPolicy):
    """One policy on the raw observations of its task."""

    Config = StatePolicyConfig
    config: StatePolicyConfig

    def __init__(self, config: StatePolicyConfig) -> None:
        super().__init__(config)
        self.network = StackedPolicy(1, self.task.observation_dim, self.task.action_dim, tuple(config.units))

    @classmethod
    def from_member(
        cls, policy: StackedPolicy, member: int, task: TaskSpec, units: tuple[int, ...], trained_by: dict[str, Any]
    ) -> StatePolicy:
        """Take member number `member` out of stacked policies."""
        single = cls(StatePolicyConfig("state", task.to_dict(), list(units), trained_by))
        state = {
            name: value if name in ("mean_O", "scale_O") else value[member : member + 1]
            for name, value in policy.state_dict().items()
        }
        single.network.load_state_dict(state)
        return single.eval().requires_grad_(False)

    @torch.no_grad()
    def act(self, observation: torch.Tensor) -> torch.Tensor:
        """[B, O] float32, environment units -> [B, A] in [-1, 1]."""
        return self.network.act(observation[None])[0]
