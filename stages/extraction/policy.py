"""The policy that extraction publishes: frozen encoder, task row and actor, in one self-contained folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...datasets.schema import TaskSpec
from ...pipeline.checkpoint import load_weights, read_config, save_weights
from ..world_model.config import WorldModelConfig
from ..world_model.networks import Encoder, WorldModel
from .actor_critic import StackedActor
from .config import ActorCriticConfig


@dataclass(frozen=True)
class LatentPolicyConfig:
    """What policy.json holds."""

    kind: str
    task: dict[str, Any]
    """The TaskSpec."""
    observation_dim: int
    """Padded width that the encoder expects."""
    action_dim: int
    """Padded width that the actor gives."""
    encoder: dict[str, Any]
    """The WorldModelConfig that the encoder was built from."""
    actor: dict[str, Any]
    """The ActorCriticConfig."""
    trained_by: dict[str, Any]
    """Algorithm, seed and anchor weight, for the record."""


class LatentPolicy(nn.Module):
    """encode, then tanh(mean) of the actor; argmax where actions are discrete."""

    task_embedding: torch.Tensor
    observation_mean: torch.Tensor
    observation_scale: torch.Tensor

    def __init__(self, config: LatentPolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.task = TaskSpec.from_dict(config.task)
        world_model = WorldModelConfig(**config.encoder)
        self.encoder = Encoder(world_model, config.observation_dim)
        self.actor = StackedActor(1, world_model.latent_dim, config.action_dim, ActorCriticConfig(**config.actor))
        self.register_buffer("task_embedding", torch.zeros(world_model.task_dim))
        self.register_buffer("observation_mean", torch.zeros(config.observation_dim))
        self.register_buffer("observation_scale", torch.ones(config.observation_dim))

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
        """Take member number `member` out of stacked actors."""
        policy = cls(
            LatentPolicyConfig(
                "latent",
                task.to_dict(),
                model.table.observation_dim,
                model.table.action_dim,
                dataclasses.asdict(model.config),
                dataclasses.asdict(networks),
                trained_by,
            )
        )
        policy.encoder.load_state_dict(model.encoder.state_dict())
        policy.actor.load_state_dict({name: value[member : member + 1] for name, value in actor.state_dict().items()})
        k = model.table.id_of(task.name)
        policy.task_embedding.copy_(model.task_embedding.weight[k].detach())
        policy.observation_mean.copy_(model.observation_mean_KO[k])
        policy.observation_scale.copy_(model.observation_scale_KO[k])
        return policy.eval().requires_grad_(False)

    @torch.no_grad()
    def act(self, observation: torch.Tensor) -> torch.Tensor:
        """[B, O] float32, environment units -> [B, A] in [-1, 1], or one-hot where actions are discrete."""
        padded = F.pad(observation, (0, self.config.observation_dim - observation.shape[-1]))
        scaled = (padded - self.observation_mean) / self.observation_scale
        z = self.encoder(scaled, self.task_embedding.expand(len(padded), -1))
        head = self.actor.head(z[None])[0, :, : self.task.action_dim]
        if self.task.action_kind == "discrete":
            return F.one_hot(head.argmax(-1), self.task.action_dim).to(head)
        return torch.tanh(head)

    def save(self, folder: Path) -> None:
        """Write policy.safetensors and policy.json."""
        save_weights(folder, "policy", self.state_dict(), self.config)

    @classmethod
    def load(cls, folder: str | Path) -> LatentPolicy:
        """Read what `save` wrote; raises CheckpointError where it does not fit."""
        policy = cls(read_config(Path(folder), "policy", LatentPolicyConfig))
        load_weights(Path(folder), "policy", policy)
        return policy.eval().requires_grad_(False)
