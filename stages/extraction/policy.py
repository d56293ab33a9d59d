"""The policy published by extraction: frozen encoder, task row and actor in one self-contained folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ...datasets.schema import TaskSpec
from ..policy.policy import StoredPolicy
from ..world_model.networks import WorldModel
from ..world_model.task_encoder import TaskEncoder
from .actor_critic import StackedActor
from .config import ActorCriticConfig


@dataclass(frozen=True)
class LatentPolicyConfig:
    """Content of policy.json."""

    kind: str
    task: dict[str, Any]
    """The TaskSpec."""
    encoder: dict[str, Any]
    """Arguments of the TaskEncoder."""
    action_dim: int
    """Padded width of the actor output."""
    actor: dict[str, Any]
    """The ActorCriticConfig."""
    trained_by: dict[str, Any]
    """Algorithm, seed and anchor weight."""


class LatentPolicy(StoredPolicy):
    """Encoder, then tanh(mean) of the actor; argmax for discrete actions."""

    Config = LatentPolicyConfig
    config: LatentPolicyConfig

    def __init__(self, config: LatentPolicyConfig) -> None:
        super().__init__(config)
        self.encoder = TaskEncoder(**config.encoder)
        latent_dim = self.encoder.config.latent_dim
        self.actor = StackedActor(1, latent_dim, config.action_dim, ActorCriticConfig(**config.actor))

    @classmethod
    def from_member(
        cls,
        model: WorldModel,
        actor: StackedActor,
        member: int,
        task: TaskSpec,
        networks: ActorCriticConfig,
        trained_by: dict[str, Any],
    ) -> LatentPolicy:
        """Extract policy number `member` from stacked actors."""
        encoder = TaskEncoder.of(model, task.name)
        policy = cls(
            LatentPolicyConfig(
                "latent",
                task.to_dict(),
                encoder.describe(),
                model.table.action_dim,
                dataclasses.asdict(networks),
                trained_by,
            )
        )
        policy.encoder.load_state_dict(encoder.state_dict())
        policy.actor.load_state_dict({name: value[member : member + 1] for name, value in actor.state_dict().items()})
        return policy.eval().requires_grad_(False)

    @torch.no_grad()
    def act(self, observation: torch.Tensor) -> torch.Tensor:
        """[B, O] float32, environment units -> [B, A] in [-1, 1], or one-hot for discrete actions."""
        self.task.check_observation(observation.shape[-1])  # the encoder would pad or cut it
        return self.act_on_latents(self.encoder(observation))

    @torch.no_grad()
    def act_on_latents(self, z: torch.Tensor) -> torch.Tensor:
        """Latents [B, D] of the world model -> [B, A], as `act`."""
        head = self.actor.head(z[None])[0, :, : self.task.action_dim]
        if self.task.action_kind == "discrete":
            return F.one_hot(head.argmax(-1), self.task.action_dim).to(head)
        return torch.tanh(head)

    @staticmethod
    def upgrade_config(values: dict[str, Any]) -> dict[str, Any]:
        """Before policies had a TaskEncoder, policy.json held its parts."""
        if "observation_dim" not in values:
            return values
        encoder = {"config": values.get("encoder"), "observation_dim": values["observation_dim"]}
        return {**{name: value for name, value in values.items() if name != "observation_dim"}, "encoder": encoder}

    @staticmethod
    def upgrade_weights(tensors: dict[str, Any]) -> dict[str, Any]:
        if "task_embedding" not in tensors:
            return tensors
        return {name if name.startswith("actor.") else f"encoder.{name}": value for name, value in tensors.items()}
