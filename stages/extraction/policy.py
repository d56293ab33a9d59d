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
from ..world_model.networks import WorldModel
from ..world_model.task_encoder import TaskEncoder
from .actor_critic import StackedActor
from .config import ActorCriticConfig


@dataclass(frozen=True)
class LatentPolicyConfig:
    """What policy.json holds."""

    kind: str
    task: dict[str, Any]
    """The TaskSpec."""
    encoder: dict[str, Any]
    """Arguments of the TaskEncoder."""
    action_dim: int
    """Padded width that the actor gives."""
    actor: dict[str, Any]
    """The ActorCriticConfig."""
    trained_by: dict[str, Any]
    """Algorithm, seed and anchor weight, for the record."""


class LatentPolicy(nn.Module):
    """encode, then tanh(mean) of the actor; argmax where actions are discrete."""

    def __init__(self, config: LatentPolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.task = TaskSpec.from_dict(config.task)
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
        """Take member number `member` out of stacked actors."""
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
        """[B, O] float32, environment units -> [B, A] in [-1, 1], or one-hot where actions are discrete."""
        self.task.check_observation(observation.shape[-1])  # the encoder would pad or cut it
        head = self.actor.head(self.encoder(observation)[None])[0, :, : self.task.action_dim]
        if self.task.action_kind == "discrete":
            return F.one_hot(head.argmax(-1), self.task.action_dim).to(head)
        return torch.tanh(head)

    def save(self, folder: Path) -> None:
        """Write policy.safetensors and policy.json."""
        save_weights(folder, "policy", self.state_dict(), self.config)

    @classmethod
    def load(cls, folder: str | Path) -> LatentPolicy:
        """Read what `save` wrote; raises CheckpointError where it does not fit."""
        policy = cls(read_config(Path(folder), "policy", LatentPolicyConfig, _nested_encoder))
        load_weights(Path(folder), "policy", policy, _nested_encoder_weights)
        return policy.eval().requires_grad_(False)


def _nested_encoder(values: dict[str, Any]) -> dict[str, Any]:
    """What policy.json held before policies had a TaskEncoder, as it is now."""
    if "observation_dim" not in values:
        return values
    encoder = {"config": values.get("encoder"), "observation_dim": values["observation_dim"]}
    return {**{name: value for name, value in values.items() if name != "observation_dim"}, "encoder": encoder}


def _nested_encoder_weights(tensors: dict[str, Any]) -> dict[str, Any]:
    if "task_embedding" not in tensors:
        return tensors
    return {name if name.startswith("actor.") else f"encoder.{name}": value for name, value in tensors.items()}
