"""What is done to gradients on their way back, and before an optimiser's step.

Dimension letters: M members.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def scale_gradient(x: torch.Tensor, share: float) -> torch.Tensor:
    """x, whose gradient is multiplied by `share`."""
    if share == 1:
        return x
    return x.detach() if share == 0 else share * x + (1 - share) * x.detach()


@torch.no_grad()
def clip_members(parameters: Sequence[nn.Parameter], members: int, max_norm: float) -> torch.Tensor:
    """Scale each member's gradient down to a norm of at most `max_norm`, in place. Returns the norms before, [M].

    Parameters are [M or several M, ., .].
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = [torch.linalg.vector_norm(g.reshape(members, -1), dim=1) for g in gradients]
    norm_M = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    factor_M = (max_norm / (norm_M + 1e-6)).clamp(max=1)
    if factor_M.is_cpu and not bool((factor_M < 1).any()):
        return norm_M  # saves a pass; on a GPU, looking costs more
    for gradient in gradients:
        gradient.mul_(factor_M.repeat_interleave(len(gradient) // members).view(-1, 1, 1))
    return norm_M
