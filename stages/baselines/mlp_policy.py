"""A plain perceptron as a policy: what an agent of a library is, without that library.

Dimension letters: B batch, O observation, A action.
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

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class MlpPolicyConfig:
    """What policy.json holds."""

    kind: str
    task: dict[str, Any]
    """The TaskSpec."""
    units: list[int]
    """Hidden widths."""
    trained_by: dict[str, Any]
    """Algorithm and seed, for the record."""
    activation: str = "relu"
    """After each hidden layer: one of ACTIVATIONS."""
    bound: str = "tanh"
    """What keeps continuous actions in [-1, 1]: tanh or clip."""


class MlpPolicy(StoredPolicy):
    """The bounded output of a perceptron of scaled observations, or the choice with the largest output."""

    mean_O: torch.Tensor
    scale_O: torch.Tensor

    Config = MlpPolicyConfig
    config: MlpPolicyConfig

    def __init__(self, config: MlpPolicyConfig) -> None:
        super().__init__(config)
        activation = ACTIVATIONS[config.activation]
        self.layers = mlp(self.task.observation_dim, config.units, self.task.action_dim, activation)
        self.register_buffer("mean_O", torch.zeros(self.task.observation_dim))
        self.register_buffer("scale_O", torch.ones(self.task.observation_dim))

    @classmethod
    def from_linears(
        cls,
        linears: Sequence[nn.Linear],
        statistics: tuple[Any, ...] | None,
        task: TaskSpec,
        trained_by: dict[str, Any],
        *,
        activation: str = "relu",
        bound: str = "tanh",
    ) -> MlpPolicy:
        """From the linear layers of an actor, which are copied.

        Args:
            statistics: mean and scale of the observations that it was trained on, [O] each; None where they were raw.
            activation, bound: as in MlpPolicyConfig.
        """
        units = [linear.out_features for linear in linears[:-1]]
        policy = cls(MlpPolicyConfig("mlp", task.to_dict(), units, trained_by, activation, bound))
        own = [layer for layer in policy.layers if isinstance(layer, nn.Linear)]
        for mine, linear in zip(own, linears, strict=True):
            mine.load_state_dict(linear.state_dict())
        if statistics is not None:
            policy.mean_O.copy_(torch.as_tensor(statistics[0]))
            policy.scale_O.copy_(torch.as_tensor(statistics[1]))
        return policy.eval().requires_grad_(False)

    @classmethod
    def from_agent(
        cls, agent: Any, statistics: tuple[Any, ...] | None, task: TaskSpec, trained_by: dict[str, Any]
    ) -> MlpPolicy:
        """From the `policy` of an agent of Stable-Baselines3 or sb3-contrib."""
        on_policy = hasattr(agent, "action_net")
        if on_policy:  # a2c, ppo, trpo
            actor: list[Any] = [agent.mlp_extractor.policy_net, agent.action_net]
        else:
            actor = [agent.actor.latent_pi, agent.actor.mu] if hasattr(agent, "actor") else [agent.q_net.q_net]
        linears = [layer for part in actor for layer in part.modules() if isinstance(layer, nn.Linear)]
        activation, bound = ("tanh", "clip") if on_policy else ("relu", "tanh")
        return cls.from_linears(linears, statistics, task, trained_by, activation=activation, bound=bound)

    @torch.no_grad()
    def act(self, observation: torch.Tensor) -> torch.Tensor:
        """[B, O] float32, environment units -> [B, A] in [-1, 1], or one-hot where actions are discrete."""
        output = self.layers((observation - self.mean_O) / self.scale_O)
        if self.task.action_kind == "discrete":
            return nn.functional.one_hot(output.argmax(-1), self.task.action_dim).to(output.dtype)
        return torch.tanh(output) if self.config.bound == "tanh" else output.clamp(-1, 1)
