"""The trained MR.Q policy: state encoder and policy network in one self-contained folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...datasets.schema import TaskSpec
from ..policy.policy import StoredPolicy
from ..world_model.task_encoder import TaskEncoder
from .config import NetworkConfig
from .networks import HiddenLayers, ImageLayers, PolicyNetwork
from .norm import norm_elu


@dataclass(frozen=True)
class MrqPolicyConfig:
    """Contents of policy.json."""

    kind: str
    task: dict[str, Any]
    """The TaskSpec."""
    networks: dict[str, Any]
    """The NetworkConfig."""
    observation: list[int]
    """Shape that the state encoder takes: [O], padded to the table's width, or [C, 84, 84]."""
    action_dim: int
    """Padded width that the policy gives."""
    world_model: dict[str, Any] | None
    """Arguments of the TaskEncoder whose latents are the observations; None if observations are the
    environment's."""
    trained_by: dict[str, Any]
    """Algorithm and seed, for the record."""


class MrqPolicy(StoredPolicy):
    """tanh of the policy's output, or the most likely choice; no noise."""

    Config = MrqPolicyConfig
    config: MrqPolicyConfig

    def __init__(self, config: MrqPolicyConfig) -> None:
        super().__init__(config)
        widths = NetworkConfig(**config.networks)
        self.features = None if config.world_model is None else TaskEncoder(**config.world_model)
        self.state: nn.Module
        if len(config.observation) == 1:
            self.state = HiddenLayers(1, config.observation[0], widths.encoder_dim, widths.latent_dim)
        else:
            self.state = ImageLayers(config.observation[0], widths.latent_dim)
        self.policy = PolicyNetwork(1, config.action_dim, widths)

    @torch.no_grad()
    def act(self, observation: torch.Tensor) -> torch.Tensor:
        """[B, O] float32, environment units -> [B, A] in [-1, 1], or one-hot where actions are discrete."""
        self.task.check_observation(observation.shape[-1])  # it would be padded or cut
        if self.features is not None:
            observation = self.features(observation)
        shape = self.config.observation
        if len(shape) == 1:
            observation = F.pad(observation, (0, shape[0] - observation.shape[-1]))
        z = norm_elu(self.state(observation.unflatten(-1, shape)[None]))
        head = self.policy(z)[0, :, : self.task.action_dim]
        if self.task.action_kind == "discrete":
            return F.one_hot(head.argmax(-1), self.task.action_dim).to(head)
        return torch.tanh(head)


def policy_of_member(
    encoder: nn.Module,
    policy: nn.Module,
    member: int,
    task: TaskSpec,
    networks: NetworkConfig,
    observation: tuple[int, ...],
    action_dim: int,
    trained_by: dict[str, Any],
    features: TaskEncoder | None = None,
) -> MrqPolicy:
    """Return member number `member` of a Learner as a separate policy.

    Args:
        encoder, policy: the Learner's.
        observation: shape that the state encoder takes.
        features: encoder of the world model whose latents are the observations, if any.
    """
    described = None if features is None else features.describe()
    made = MrqPolicy(
        MrqPolicyConfig(
            "mrq", task.to_dict(), dataclasses.asdict(networks), list(observation), action_dim, described, trained_by
        )
    )
    for ours, theirs in ((made.state, encoder.get_submodule("state")), (made.policy, policy)):
        stacked = isinstance(theirs, ImageLayers)  # has unstacked layers, and one member
        ours.load_state_dict(
            {name: value if stacked else value[member : member + 1] for name, value in theirs.state_dict().items()}
        )
    if made.features is not None and features is not None:
        made.features.load_state_dict(features.state_dict())
    return made.eval().requires_grad_(False)
