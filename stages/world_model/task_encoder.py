"""The frozen encoder of one task: raw observations to latents.

Every policy that acts on latents carries one, so it needs no world model and cannot drift from it.

Dimension letters: B batch, O observation, D latent.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .config import WorldModelConfig
from .networks import Encoder, WorldModel, encoder_input


class TaskEncoder(nn.Module):
    """Observation [B, O] of one task, environment units -> latent [B, D]."""

    task_embedding: torch.Tensor
    observation_mean: torch.Tensor
    observation_scale: torch.Tensor
    angle: torch.Tensor | None

    def __init__(self, config: dict[str, Any], observation_dim: int) -> None:
        """An empty one, to load weights into. See `describe` for the arguments."""
        super().__init__()
        self.config = WorldModelConfig(**config)
        self.observation_dim = observation_dim
        self.encoder = Encoder(self.config, observation_dim)
        self.register_buffer("task_embedding", torch.zeros(self.config.task_dim))
        self.register_buffer("observation_mean", torch.zeros(observation_dim))
        self.register_buffer("observation_scale", torch.ones(observation_dim))
        self.register_buffer("angle", torch.zeros(observation_dim) if self.config.wrap_angles else None)

    @classmethod
    def of(cls, model: WorldModel, task: str) -> TaskEncoder:
        """A frozen copy of what `model` knows of observations of the task of that name."""
        one = cls(dataclasses.asdict(model.config), model.table.observation_dim)
        k = model.table.id_of(task)
        one.encoder.load_state_dict(model.encoder.state_dict())
        one.task_embedding.copy_(model.task_embedding.weight[k].detach())
        one.observation_mean.copy_(model.observation_mean_KO[k])
        one.observation_scale.copy_(model.observation_scale_KO[k])
        if one.angle is not None and model.angle_KO is not None:
            one.angle.copy_(model.angle_KO[k])
        return one.eval().requires_grad_(False)

    def describe(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON takes them: the model's `config` and the padded `observation_dim`."""
        return {"config": dataclasses.asdict(self.config), "observation_dim": self.observation_dim}

    def forward(self, observation_BO: torch.Tensor) -> torch.Tensor:
        """[B, O], padded here to the model's width -> z [B, D]."""
        padded_BO = F.pad(observation_BO, (0, self.observation_dim - observation_BO.shape[-1]))
        read_BI = encoder_input(padded_BO, self.observation_mean, self.observation_scale, self.angle)
        # shape[0], not len(): torch.export would freeze the number of rows.
        return self.encoder(read_BI, self.task_embedding.expand(padded_BO.shape[0], -1))
