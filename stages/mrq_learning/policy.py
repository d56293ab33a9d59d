"""The policy that MR.Q publishes: its state encoder and policy network, in one self-contained folder."""

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
from ..world_model.networks import Encoder as WorldModelEncoder
from ..world_model.networks import WorldModel
from .config import NetworkConfig
from .networks import ImageLayers, PolicyNetwork, StackedMLP
from .norm import norm_elu


@dataclass(frozen=True)
class MrqPolicyConfig:
    """What policy.json holds."""

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
    """The WorldModelConfig and padded `observation_dim` of the world model whose latents are the observations; None
    where observations are the environment's."""
    trained_by: dict[str, Any]
    """Algorithm and seed, for the record."""


class MrqPolicy(nn.Module):
    """tanh of the policy's output, or the most likely choice; no noise."""

    def __init__(self, config: MrqPolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.task = TaskSpec.from_dict(config.task)
        widths = NetworkConfig(**config.networks)
        self.features = None if config.world_model is None else _Features(**config.world_model)
        self.state: nn.Module
        if len(config.observation) == 1:
            self.state = StackedMLP(1, config.observation[0], widths.encoder_dim, widths.latent_dim)
        else:
            self.state = ImageLayers(config.observation[0], widths.latent_dim)
        self.policy = PolicyNetwork(1, config.action_dim, widths)

    @torch.no_grad()
    def act(self, observation: torch.Tensor) -> torch.Tensor:
        """[B, O] float32, environment units -> [B, A] in [-1, 1], or one-hot where actions are discrete."""
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

    def save(self, folder: Path) -> None:
        """Write policy.safetensors and policy.json."""
        save_weights(folder, "policy", self.state_dict(), self.config)

    @classmethod
    def load(cls, folder: str | Path) -> MrqPolicy:
        """Read what `save` wrote; raises CheckpointError where it does not fit."""
        policy = cls(read_config(Path(folder), "policy", MrqPolicyConfig))
        load_weights(Path(folder), "policy", policy)
        return policy.eval().requires_grad_(False)


class _Features(nn.Module):
    """Frozen encoder of a world model for one task: observation -> latent."""

    task_embedding: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, config: dict[str, Any], observation_dim: int) -> None:
        super().__init__()
        self._observation_dim = observation_dim
        world_model = WorldModelConfig(**config)
        self.encoder = WorldModelEncoder(world_model, observation_dim)
        self.register_buffer("task_embedding", torch.zeros(world_model.task_dim))
        self.register_buffer("mean", torch.zeros(observation_dim))
        self.register_buffer("scale", torch.ones(observation_dim))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        padded = F.pad(observation, (0, self._observation_dim - observation.shape[-1]))
        scaled = (padded - self.mean) / self.scale
        return self.encoder(scaled, self.task_embedding.expand(len(padded), -1))


def policy_of_member(
    encoder: nn.Module,
    policy: nn.Module,
    member: int,
    task: TaskSpec,
    networks: NetworkConfig,
    observation: tuple[int, ...],
    action_dim: int,
    trained_by: dict[str, Any],
    world_model: WorldModel | None = None,
) -> MrqPolicy:
    """Member number `member` of a Learner as a policy of its own.

    Args:
        encoder, policy: the Learner's.
        observation: shape that the state encoder takes.
        world_model: whose latents the encoder was trained on, if it was.
    """
    described = None
    if world_model is not None:
        described = {
            "config": dataclasses.asdict(world_model.config),
            "observation_dim": world_model.table.observation_dim,
        }
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
    if made.features is not None and world_model is not None:
        k = world_model.table.id_of(task.name)
        made.features.encoder.load_state_dict(world_model.encoder.state_dict())
        made.features.task_embedding.copy_(world_model.task_embedding.weight[k].detach())
        made.features.mean.copy_(world_model.observation_mean_KO[k])
        made.features.scale.copy_(world_model.observation_scale_KO[k])
    return made.eval().requires_grad_(False)
