"""Products of stacked matrices, narrowed where autocast asks for it.

Dimension letters: M members, B batch.
"""

from __future__ import annotations

import torch

LEAST_WIDTH = 32
"""Narrower products are not narrowed: those that read actions or give values or actions cost little, and every digit of
them is read."""


def stacked_linear(bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ weight + bias of each member: [M, B, in], [M, in, out], bias [M, 1 or B, out] -> [M, B, out] float32.

    Under autocast, x, weight and their product are rounded to its type; biases and what follows are not.
    """
    device = x.device.type
    if not (device in ("cpu", "cuda") and torch.is_autocast_enabled(device)):
        return torch.baddbmm(bias, x, weight)
    if min(weight.shape[1:]) < LEAST_WIDTH:
        with torch.autocast(device, enabled=False):
            return torch.baddbmm(bias, x, weight)
    return torch.bmm(x, weight).float().add_(bias)
