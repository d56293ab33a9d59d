"""Layer normalisation without parameters, followed by an activation: the only nonlinearity of MR.Q's perceptrons.

These take a fifth of a training step on a CPU; computing ELU with exp instead of expm1 halves that. The results differ
by one unit in the last place of 1 (6e-8).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

EPSILON = 1e-5


def norm_elu(x: torch.Tensor) -> torch.Tensor:
    """ELU((x - mean) / sqrt(var + 1e-5)), mean and variance over the last dimension."""
    if x.requires_grad:
        return _NormElu.apply(x)
    return _elu(F.layer_norm(x, x.shape[-1:], eps=EPSILON))


def norm_relu(x: torch.Tensor) -> torch.Tensor:
    """The same with ReLU."""
    return F.relu(F.layer_norm(x, x.shape[-1:], eps=EPSILON))


def _elu(x: torch.Tensor) -> torch.Tensor:
    # exp(x) - 1 >= x, with equality at 0, so the larger of the two is ELU.
    return torch.maximum(x, x.clamp(max=0).exp_().sub_(1))


class _NormElu(torch.autograd.Function):
    """Keeps the result for the backward pass, which then needs no exponential."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        normed, mean, inverse_deviation = torch.native_layer_norm(x, x.shape[-1:], None, None, EPSILON)
        result = _elu(normed)
        ctx.save_for_backward(x, mean, inverse_deviation, result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        x, mean, inverse_deviation, result = ctx.saved_tensors
        gradient = torch.ops.aten.elu_backward(gradient, 1.0, 1.0, 1.0, True, result)
        found: torch.Tensor = torch.ops.aten.native_layer_norm_backward(
            gradient, x, x.shape[-1:], mean, inverse_deviation, None, None, [True, False, False]
        )[0]
        return found
