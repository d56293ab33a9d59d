"""What is done to gradients on their way back."""

from __future__ import annotations

import torch


def scale_gradient(x: torch.Tensor, share: float) -> torch.Tensor:
    """x, whose gradient is multiplied by `share`."""
    if share == 1:
        return x
    return x.detach() if share == 0 else share * x + (1 - share) * x.detach()
