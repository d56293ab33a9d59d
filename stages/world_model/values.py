"""The value ensemble and the policy prior of the latent model, and their losses. Planning needs them, extraction
doesn't.

Dimension letters: N value functions, B batch (any leading dimensions), T time, A action, M bins, H hidden.
Source: TD-MPC2 (arXiv 2310.16828) sections 3.1 and 3.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from .activations import ACTIVATIONS
from .config import WorldModelConfig
from .losses import soft_cross_entropy


class ValueEnsemble(nn.Module):
    """N value functions of (z, task, action) with two-hot outputs, as stacked weights.

    A layer is Linear, dropout (the first layer, where the weights learn), LayerNorm, activation. Heads that are not
    asked for cost nothing.
    """

    def __init__(self, config: WorldModelConfig, in_dim: int) -> None:
        super().__init__()
        self._activation, self._dropout = ACTIVATIONS[config.activation], config.dropout
        widths = [in_dim, config.mlp_dim, config.mlp_dim, config.num_bins]
        shapes = [(config.num_q, b, a) for a, b in pairwise(widths)]
        self.weight = nn.ParameterList([nn.init.trunc_normal_(torch.empty(shape), std=0.02) for shape in shapes])
        self.bias = nn.ParameterList([torch.zeros(shape[:2]) for shape in shapes])
        self.norm_weight = nn.ParameterList([torch.ones(shape[:2]) for shape in shapes[:-1]])
        self.norm_bias = nn.ParameterList([torch.zeros(shape[:2]) for shape in shapes[:-1]])
        nn.init.zeros_(self.weight[-1])  # uniform over the bins: an untrained value is 0

    def forward(self, joint: torch.Tensor, heads: torch.Tensor | None = None, *, frozen: bool = False) -> torch.Tensor:
        """Args:
            joint: [B, in], (z, task embedding, action) side by side.
            heads: [n] which of the N; None is all.
            frozen: no gradient to the weights; one to `joint` still flows.
        Returns:
            logits [n, B, M].
        """

        def chosen(parameter: torch.Tensor) -> torch.Tensor:
            parameter = parameter.detach() if frozen else parameter
            return parameter if heads is None else parameter[heads]

        rows = joint.flatten(0, -2)
        weight = chosen(self.weight[0])
        # All heads read the same rows: one product for the first layer, [R, n * H] -> [n, R, H].
        x = F.linear(rows, weight.flatten(0, 1)).unflatten(-1, weight.shape[:2]).transpose(0, 1)
        for i in range(len(self.weight)):
            if i > 0:
                x = torch.bmm(x, chosen(self.weight[i]).transpose(1, 2))
            x = x + chosen(self.bias[i])[:, None]
            if i == len(self.weight) - 1:
                break
            if i == 0 and not frozen:
                x = F.dropout(x, self._dropout, self.training and torch.is_grad_enabled())
            scale, shift = chosen(self.norm_weight[i])[:, None], chosen(self.norm_bias[i])[:, None]
            x = self._activation(torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), scale))
        return x.unflatten(1, joint.shape[:-1])


@dataclass(frozen=True)
class PriorSample:
    """One draw from the policy prior."""

    action: torch.Tensor
    """[B, A] in [-1, 1], padded components 0."""
    mean: torch.Tensor
    """[B, A], squashed: the deterministic action."""
    scaled_entropy: torch.Tensor
    """[B], minus the log-probability of the action, times the number of the task's components."""


def sample_prior(
    head: torch.Tensor, noise: torch.Tensor, mask: torch.Tensor, config: WorldModelConfig, *, squashed_entropy: bool
) -> PriorSample:
    """tanh(mean + std * noise) with log std squashed into its range.

    Args:
        head: [B, 2A], mean and raw log standard deviation.
        noise: [B, A], standard normal.
        mask: [B, A], 1 where the component is the task's own.
        squashed_entropy: see LossConfig.
    """
    mean, raw = head.chunk(2, -1)
    log_std = config.log_std_min + 0.5 * (config.log_std_max - config.log_std_min) * (torch.tanh(raw) + 1)
    mean, log_std, noise = mean * mask, log_std * mask, noise * mask
    action = torch.tanh(mean + noise * log_std.exp())
    log_probability = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    if squashed_entropy:
        # The small number keeps the logarithm finite where an action saturates in float32.
        log_probability = (log_probability - torch.log1p(-action.square() + 1e-6)) * mask
    return PriorSample(action, torch.tanh(mean), -log_probability.sum(-1) * mask.sum(-1))


def value_loss(logits_NTB: torch.Tensor, target_TB: torch.Tensor, bins_M: torch.Tensor) -> torch.Tensor:
    """Mean over the N heads of the soft cross-entropy against the TD target: logits [N, T, B, M] -> [T, B]."""
    return soft_cross_entropy(logits_NTB, target_TB.expand(logits_NTB.shape[:-1]), bins_M).mean(0)


def prior_loss(
    value_TB: torch.Tensor, scaled_entropy_TB: torch.Tensor, valid_TB: torch.Tensor, entropy: float, rho: float
) -> torch.Tensor:
    """mean_t rho^t mean_b -(value / scale + entropy * scaled_entropy), over valid entries.

    Args:
        value_TB: [T, B], of the prior's actions, divided by the running scale.
        valid_TB: [T, B], 1 where the latent is of a state that the data reached.
    """
    rho_T = rho ** torch.arange(len(value_TB), device=value_TB.device, dtype=value_TB.dtype)
    gain_TB = (value_TB + entropy * scaled_entropy_TB) * valid_TB
    return -(rho_T * gain_TB.sum(1) / valid_TB.sum(1).clamp(min=1)).mean()


def percentile_range(value_B: torch.Tensor) -> torch.Tensor:
    """95th minus 5th percentile, at least 1. Scalar."""
    low, high = torch.quantile(value_B.float(), torch.tensor([0.05, 0.95], device=value_B.device))
    return (high - low).clamp(min=1)
