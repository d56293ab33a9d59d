"""The policy prior's actions, and the losses of prior and values. Planning needs them, extraction doesn't.

Dimension letters: N value functions, B batch (any leading dimensions), T time, A action, M bins.
Source: TD-MPC2 (arXiv 2310.16828) sections 3.1 and 3.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .config import WorldModelConfig
from .losses import soft_cross_entropy


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
        mask: [B, A], 1 if the component is the task's own.
        squashed_entropy: see LossConfig.
    """
    mean, raw = head.chunk(2, -1)
    log_std = config.log_std_min + 0.5 * (config.log_std_max - config.log_std_min) * (torch.tanh(raw) + 1)
    mean, log_std, noise = mean * mask, log_std * mask, noise * mask
    unsquashed = mean + noise * log_std.exp()
    log_probability = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    if squashed_entropy:
        # log(1 - tanh(u)^2), written so that it stays finite where an action saturates.
        log_slope = 2 * (math.log(2) - unsquashed - F.softplus(-2 * unsquashed))
        log_probability = (log_probability - log_slope) * mask
    return PriorSample(torch.tanh(unsquashed), torch.tanh(mean), -log_probability.sum(-1) * mask.sum(-1))


def value_loss(logits_NTB: torch.Tensor, target_TB: torch.Tensor, bins_M: torch.Tensor) -> torch.Tensor:
    """Mean over the N heads of the soft cross-entropy against the TD target: logits [N, T, B, M] -> [T, B]."""
    return soft_cross_entropy(logits_NTB, target_TB.expand(logits_NTB.shape[:-1]), bins_M).mean(0)


def prior_loss(
    value_TB: torch.Tensor,
    scaled_entropy_TB: torch.Tensor,
    valid_TB: torch.Tensor,
    entropy: float,
    rho: float,
    count_T: torch.Tensor | None = None,
) -> torch.Tensor:
    """mean_t rho^t mean_b -(value / scale + entropy * scaled_entropy), over valid entries.

    Args:
        value_TB: [T, B], of the prior's actions, divided by the running scale.
        valid_TB: [T, B], 1 if the latent is of a state that the data reached.
        count_T: [T], what the entries of a step are divided by; None is how many of them are valid.
    """
    rho_T = rho ** torch.arange(len(value_TB), device=value_TB.device, dtype=value_TB.dtype)
    gain_TB = (value_TB + entropy * scaled_entropy_TB) * valid_TB
    count_T = valid_TB.sum(1) if count_T is None else count_T
    return -(rho_T * gain_TB.sum(1) / torch.where(count_T > 0, count_T, 1)).mean()


def percentile_range(value_B: torch.Tensor) -> torch.Tensor:
    """95th minus 5th percentile, at least 1. Scalar."""
    low, high = torch.quantile(value_B.float(), torch.tensor([0.05, 0.95]).to(value_B.device, non_blocking=True))
    return (high - low).clamp(min=1)
