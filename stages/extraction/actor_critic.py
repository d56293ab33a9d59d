"""Actors and critics of many policies as stacked weights: one batched matmul serves all members.

A member is one policy: a task, a seed and an anchor weight. Members share nothing but the frozen world model, so the
gradient of the summed loss is each member's own gradient, and training them together equals training them one by one.

Dimension letters: M members, N critics of a member, B batch, D latent, A action.
Source: PWM (arXiv 2407.02466) appendix B. Blocks are Linear, activation, LayerNorm, in this order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..layers.mlp import StackedMLP
from .config import ActorCriticConfig


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

    def log_density(
        self, head_MBA: torch.Tensor, noise_MBA: torch.Tensor, members: slice = slice(None)
    ) -> torch.Tensor:
        """Log density of mean + std * noise, as a fixed number, up to a constant: [M, B, A]."""
        log_std = self.log_std[members].clamp(min=self._log_std_min)
        drawn = (head_MBA + log_std.exp() * noise_MBA).detach()
        return -0.5 * ((drawn - head_MBA) / log_std.exp()).square() - log_std


class StackedCritic(nn.Module):
    """N value functions per member, of states or of states and actions, in units of the member's value scale."""

    def __init__(self, members: int, in_dim: int, config: ActorCriticConfig) -> None:
        super().__init__()
        self.num_critics = config.num_critics
        self.mlp = StackedMLP(members * config.num_critics, in_dim, config.critic_units, 1, config.activation)

    def forward(self, x_MBD: torch.Tensor) -> torch.Tensor:
        """[M, B, in] -> [M, N, B]."""
        return self.mlp(x_MBD.repeat_interleave(self.num_critics, 0))[..., 0].unflatten(0, (-1, self.num_critics))


def straight_through_one_hot(
    logits: torch.Tensor, gumbel: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """One-hot sample of softmax(logits) whose gradient is that of the relaxed sample. All [..., A]; mask 1 if valid.

    Source: Jang et al. (arXiv 1611.01144), straight-through Gumbel-softmax. First-order gradients reach a discrete
    policy only through such a relaxation; PWM itself is for continuous actions.
    """
    scores = ((logits + gumbel) / temperature).masked_fill(mask == 0, -torch.inf)
    soft = torch.softmax(scores, -1)
    hard = F.one_hot(scores.argmax(-1), scores.shape[-1]).to(soft)
    return hard + soft - soft.detach()
