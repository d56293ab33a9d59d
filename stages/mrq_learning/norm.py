"""Layer normalisation without parameters, followed by an activation: the only nonlinearity of MR.Q's perceptrons."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def norm_elu(x: torch.Tensor) -> torch.Tensor:
    """ELU((x - mean) / sqrt(var + 1e-5)), mean and variance over the last dimension."""
    return F.elu(F.layer_norm(x, x.shape[-1:]))


def norm_relu(x: torch.Tensor) -> torch.Tensor:
    """The same with ReLU."""
    return F.relu(F.layer_norm(x, x.shape[-1:]))
