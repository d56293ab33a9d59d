"""A world model reduced to one task, for planning, which calls it thousands of times per step.

The task's embedding is constant, so its part of each first layer is added to the bias; columns of padded
observation and action components are removed. Results equal those of WorldModel up to rounding.

Dimension letters: B environments, H steps, N trajectories of each environment, O observation, A action (the task's
own components), D latent.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..world_model.losses import two_hot_decode
from ..world_model.networks import WorldModel, encoder_input
from ..world_model.values import sample_prior
from .config import check_can_plan


class TaskModel(nn.Module):
    """Encoder, imagined returns and policy prior of one task of a frozen world model."""

    observation_mean: torch.Tensor
    observation_scale: torch.Tensor
    angle: torch.Tensor | None
    bins_M: torch.Tensor
    action_mask: torch.Tensor

    def __init__(self, model: WorldModel, task: int) -> None:
        """Copy the required parts of `model`.

        Raises:
            CheckpointError: the model has no values, or is an action model.
        """
        super().__init__()
        check_can_plan(model.config.num_q > 0, model.config.dynamics, "the world model")
        spec = model.table[task]
        self.action_dim, self.discrete = spec.action_dim, spec.action_kind == "discrete"
        self.discount = float(model.discount_K[task])
        self._config = model.config
        embedding = model.task_embedding.weight[task].detach()

        def narrowed(head: nn.Sequential, own: int, padded: int, action_dim: int, parts: int = 1) -> nn.Sequential:
            head = copy.deepcopy(head)
            first: Any = head[0]
            kept = _narrowed(first.linear.weight, first.linear.bias, embedding, own, padded, action_dim, parts)
            _set_linear(first.linear, *kept)
            return head

        D, A = model.config.latent_dim, spec.action_dim
        own = spec.observation_dim
        self.encoder = narrowed(
            model.encoder.layers, own, model.table.observation_dim, 0, model.config.observation_parts
        )
        self.dynamics = narrowed(model.dynamics, D, D, A)
        self.reward = narrowed(model.reward, D, D, A)
        self.continue_head = narrowed(model.continue_head, D, D, 0) if spec.terminates else None
        self.prior = narrowed(model.policy_prior, D, D, 0)
        last: Any = self.prior[-1]
        rows = torch.cat([torch.arange(A), model.table.action_dim + torch.arange(A)])  # means, then log deviations
        _set_linear(last, last.weight[rows], last.bias[rows])
        self.values = copy.deepcopy(model.values)
        weight, bias = _narrowed(self.values.weight[0], self.values.bias[0], embedding, D, D, A)
        self.values.weight[0], self.values.bias[0] = nn.Parameter(weight), nn.Parameter(bias)
        self.register_buffer("observation_mean", model.observation_mean_KO[task, :own].clone())
        self.register_buffer("observation_scale", model.observation_scale_KO[task, :own].clone())
        self.register_buffer("angle", None if model.angle_KO is None else model.angle_KO[task, :own].clone())
        self.register_buffer("bins_M", model.bins_M.clone())
        self.register_buffer("action_mask", torch.ones(A))
        self.eval().requires_grad_(False)

    def encode(self, observation_BO: torch.Tensor) -> torch.Tensor:
        """Environment units -> z [B, D]."""
        return self.encoder(encoder_input(observation_BO, self.observation_mean, self.observation_scale, self.angle))

    def executable(self, action: torch.Tensor) -> torch.Tensor:
        """The nearest action that the environment can execute, [..., A]: within [-1, 1], or one-hot."""
        if self.discrete:
            return F.one_hot(action.argmax(-1), self.action_dim).to(action.dtype)
        return action.clamp(-1, 1)

    def prior_action(self, z: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Action of the policy prior in z [..., D], from standard normal noise [..., A]."""
        sample = sample_prior(self.prior(z), noise, self.action_mask, self._config, squashed_entropy=False)
        return self.executable(sample.action)

    def prior_actions(self, z_BD: torch.Tensor, noise_HBNA: torch.Tensor) -> torch.Tensor:
        """Actions of the policy prior along N imagined trajectories: [H, B, N, A]."""
        z = z_BD[:, None].expand(-1, noise_HBNA.shape[2], -1)
        actions = []
        for t, noise in enumerate(noise_HBNA):
            actions.append(self.prior_action(z, noise))
            if t < len(noise_HBNA) - 1:
                z = self.dynamics(torch.cat([z, actions[-1]], -1))
        return torch.stack(actions)

    def returns(self, z_BD: torch.Tensor, action_HBNA: torch.Tensor, noise_BNA: torch.Tensor) -> torch.Tensor:
        """Imagined return of each trajectory, [B, N], environment units.

            sum_t discount^t alive_t r_t + discount^H alive_H Q(z_H, a_H),    alive_t = prod_{s <= t} c(z_s)

        c is the probability that the episode continues in a state, 1 if the task does not terminate; Q is the mean of
        all value functions; a_H is the policy prior's action, from `noise_BNA`.
        """
        z = z_BD[:, None].expand(-1, action_HBNA.shape[2], -1)
        total, weight = torch.zeros_like(noise_BNA[..., 0]), torch.ones_like(noise_BNA[..., 0])
        for action in action_HBNA:
            joint = torch.cat([z, action], -1)
            total = total + weight * two_hot_decode(self.reward(joint), self.bins_M)
            z = self.dynamics(joint)
            weight = weight * self.discount
            if self.continue_head is not None:
                weight = weight * torch.sigmoid(self.continue_head(z)[..., 0])
        logits = self.values(torch.cat([z, self.prior_action(z, noise_BNA)], -1), frozen=True)
        return total + weight * two_hot_decode(logits, self.bins_M).mean(0)


def _narrowed(
    weight: torch.Tensor,
    bias: torch.Tensor,
    embedding: torch.Tensor,
    own: int,
    padded: int,
    action_dim: int,
    parts: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [..., out, in] and bias [..., out] of a layer that reads the first `own` components of each of the `parts`
    of its first input and the first `action_dim` of its last, in place of one that reads `padded` components of each
    part, the embedding and the action."""
    before = parts * padded
    after = before + len(embedding)
    first = weight[..., :before].unflatten(-1, (parts, padded))[..., :own].flatten(-2)
    kept = torch.cat([first, weight[..., after : after + action_dim]], -1)
    return kept, bias + weight[..., before:after] @ embedding


def _set_linear(layer: nn.Linear, weight: torch.Tensor, bias: torch.Tensor) -> None:
    layer.weight, layer.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    layer.out_features, layer.in_features = weight.shape
