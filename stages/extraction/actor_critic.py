"""Actors and critics of many policies as stacked weights: one batched matmul serves all members.

A member is one policy: a task, a seed and an anchor weight. Members share nothing but the frozen world model, so the
gradient of the summed loss is each member's own gradient, and training them together equals training them one by one.

Dimension letters: M members, N critics of a member, B batch, D latent, A action.
Source: PWM (arXiv 2407.02466) appendix B. Blocks are Linear, activation, LayerNorm, in this order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from ..world_model.networks import ACTIVATIONS
from .config import ActorCriticConfig


class StackedMLP(nn.Module):
    """M perceptrons of the same sizes. Parameters have the member as first dimension."""

    def __init__(self, members: int, in_dim: int, units: Sequence[int], out_dim: int, activation: str = "mish") -> None:
        super().__init__()
        self._activation = ACTIVATIONS[activation]
        widths = [in_dim, *units, out_dim]
        pairs = list(pairwise(widths))
        self.weight = nn.ParameterList([torch.empty(members, a, b) for a, b in pairs])
        self.bias = nn.ParameterList([torch.zeros(members, 1, b) for _, b in pairs])
        self.norm_weight = nn.ParameterList([torch.ones(members, 1, b) for b in units])
        self.norm_bias = nn.ParameterList([torch.zeros(members, 1, b) for b in units])

    def forward(self, x: torch.Tensor, members: slice = slice(None)) -> torch.Tensor:
        """[M, B, in] -> [M, B, out]; `members` selects those that x holds."""
        last = len(self.weight) - 1
        for i, (weight, bias) in enumerate(zip(self.weight, self.bias, strict=True)):
            x = torch.baddbmm(bias[members], x, weight[members])
            if i < last:
                normed = F.layer_norm(self._activation(x), x.shape[-1:])
                x = torch.addcmul(self.norm_bias[i][members], normed, self.norm_weight[i][members])
        return x

    @torch.no_grad()
    def initialise_uniform(self, member: int, generator: torch.Generator) -> None:
        """PyTorch's default Linear initialisation, U(-1/sqrt(in), 1/sqrt(in)), of one member."""
        for weight, bias in zip(self.weight, self.bias, strict=True):
            bound = 1 / math.sqrt(weight.shape[1])
            weight[member].uniform_(-bound, bound, generator=generator)
            bias[member].uniform_(-bound, bound, generator=generator)

    @torch.no_grad()
    def initialise_orthogonal(self, member: int, generator: torch.Generator) -> None:
        """Orthogonal with gain sqrt(2) and zero bias, of one member."""
        for weight, bias in zip(self.weight, self.bias, strict=True):
            # nn.init counts fan-in along the last dimension, as in nn.Linear's [out, in].
            nn.init.orthogonal_(weight[member].T, gain=math.sqrt(2), generator=generator)
            bias[member].zero_()


class StackedActor(nn.Module):
    """Squashed Gaussian policies with a state-independent standard deviation; logits where actions are discrete."""

    def __init__(self, members: int, latent_dim: int, action_dim: int, config: ActorCriticConfig) -> None:
        super().__init__()
        self.mlp = StackedMLP(members, latent_dim, config.actor_units, action_dim, config.activation)
        self.log_std = nn.Parameter(torch.full((members, 1, action_dim), config.log_std_init))
        self._log_std_min = config.log_std_min

    def head(self, z_MBD: torch.Tensor, members: slice = slice(None)) -> torch.Tensor:
        """Mean before the squash, or logits: [M, B, A]."""
        return self.mlp(z_MBD, members)

    @torch.no_grad()
    def bound_log_std(self) -> None:
        """Lift log standard deviations to their lower bound. Below it they would have no gradient to come back by."""
        self.log_std.clamp_(min=self._log_std_min)

    def sample(self, head_MBA: torch.Tensor, noise_MBA: torch.Tensor, members: slice = slice(None)) -> torch.Tensor:
        """tanh(mean + std * noise), noise standard normal."""
        return torch.tanh(head_MBA + self.log_std[members].clamp(min=self._log_std_min).exp() * noise_MBA)


class StackedCritic(nn.Module):
    """N state-value functions per member, in units of the member's value scale."""

    def __init__(self, members: int, latent_dim: int, config: ActorCriticConfig) -> None:
        super().__init__()
        self.num_critics = config.num_critics
        self.mlp = StackedMLP(members * config.num_critics, latent_dim, config.critic_units, 1, config.activation)

    def forward(self, z_MBD: torch.Tensor) -> torch.Tensor:
        """[M, B, D] -> [M, N, B]."""
        return self.mlp(z_MBD.repeat_interleave(self.num_critics, 0))[..., 0].unflatten(0, (-1, self.num_critics))


def straight_through_one_hot(
    logits: torch.Tensor, gumbel: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """One-hot sample of softmax(logits) whose gradient is that of the relaxed sample. All [..., A]; mask 1 where valid.

    Source: Jang et al. (arXiv 1611.01144), straight-through Gumbel-softmax. First-order gradients reach a discrete
    policy only through such a relaxation; PWM itself is for continuous actions.
    """
    scores = ((logits + gumbel) / temperature).masked_fill(mask == 0, -torch.inf)
    soft = torch.softmax(scores, -1)
    hard = F.one_hot(scores.argmax(-1), scores.shape[-1]).to(soft)
    return hard + soft - soft.detach()


@torch.no_grad()
def clip_members_(parameters: Sequence[nn.Parameter], members: int, max_norm: float) -> torch.Tensor:
    """Clip each member's gradient to `max_norm` in place. Returns the norms before clipping, [M]."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm_M = torch.stack([g.reshape(members, -1).square().sum(1) for g in gradients]).sum(0).sqrt()
    factor_M = (max_norm / (norm_M + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(factor_M.repeat_interleave(len(gradient) // members).view(-1, 1, 1))
    return norm_M
