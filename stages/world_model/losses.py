"""The equations of the world model's losses, as pure functions.

Dimension letters: T time, B batch, D latent, M bins; `...` any leading dimensions.
Source: TD-MPC2 (arXiv 2310.16828); symlog and two-hot from DreamerV3 (arXiv 2301.04104).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def symlog(x: torch.Tensor) -> torch.Tensor:
    """sign(x) ln(1 + |x|), any shape."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: torch.Tensor) -> torch.Tensor:
    """Inverse of `symlog`: sign(x) (exp(|x|) - 1)."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


def two_hot(value: torch.Tensor, bins_M: torch.Tensor) -> torch.Tensor:
    """Weights on the two bins around symlog(value), linear in between.

    Args:
        value: [...], in environment units; clamped to the range of the bins.
        bins_M: [M], evenly spaced, in symlog units.
    Returns:
        [..., M], not negative, sums to 1.
    """
    num_bins = len(bins_M)
    width = (bins_M[-1] - bins_M[0]) / (num_bins - 1)
    position = ((symlog(value) - bins_M[0]) / width).clamp(0, num_bins - 1)
    lower = position.floor()
    upper_weight = (position - lower)[..., None]
    lower_index = lower.long()[..., None]
    upper_index = (lower_index + 1).clamp(max=num_bins - 1)
    weights = torch.zeros(*value.shape, num_bins, dtype=value.dtype, device=value.device)
    weights.scatter_(-1, lower_index, 1 - upper_weight)
    return weights.scatter_add_(-1, upper_index, upper_weight)


def two_hot_mean(logits: torch.Tensor, bins_M: torch.Tensor) -> torch.Tensor:
    """sum_m softmax(logits)_m bin_m, in symlog units: [..., M] -> [...]; in the bins' type, also under autocast."""
    with torch.autocast(logits.device.type, enabled=False):
        return torch.softmax(logits.to(bins_M.dtype), -1) @ bins_M


def two_hot_decode(logits: torch.Tensor, bins_M: torch.Tensor) -> torch.Tensor:
    """Value that logits [..., M] stand for, in environment units; shape [...].

    The expectation is taken in symlog space, as published.
    """
    return symexp(two_hot_mean(logits, bins_M))


def soft_cross_entropy(logits: torch.Tensor, value: torch.Tensor, bins_M: torch.Tensor) -> torch.Tensor:
    """-sum_m two_hot(value)_m log softmax(logits)_m, in nats. Shapes: logits [..., M], value [...] -> [...]."""
    return -(two_hot(value, bins_M) * F.log_softmax(logits, -1)).sum(-1)


def horizon_mean(
    loss_TB: torch.Tensor, weight_TB: torch.Tensor, rho: float, count_T: torch.Tensor | None = None
) -> torch.Tensor:
    """(1 / T) sum_t rho^t mean_b(loss) over valid, weighted entries.

    Args:
        loss_TB: [T, B].
        weight_TB: [T, B], 0 if the window is padded, otherwise the weight of its task.
        rho: in (0, 1]; later, less certain steps count less.
        count_T: what the entries of a step are divided by; None is how many of them are valid.
    Returns:
        Scalar. Each step is averaged over its valid entries, so padding changes the weight of nothing else.
    """
    T = len(loss_TB)
    rho_T = rho ** torch.arange(T, device=loss_TB.device, dtype=loss_TB.dtype)
    if count_T is None:
        count_T = (weight_TB > 0).sum(1)
    return (rho_T * (loss_TB * weight_TB).sum(1) / torch.where(count_T > 0, count_T, 1)).sum() / T
