"""Gradients: freezing parameters, and clipping norms.

Dimension letters: M members.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Freeze the parameters of these modules; gradients with respect to their inputs then cost half as much."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@torch.no_grad()
def clip_members(parameters: Sequence[nn.Parameter], members: int, max_norm: float) -> None:
    """Scale each member's gradient down to a norm of at most `max_norm`."""
    gradients = [p.grad.view(members, -1) for p in parameters if p.grad is not None]
    norm_M = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g, dim=1) for g in gradients]), dim=0)
    factor_M = (max_norm / (norm_M + 1e-6)).clamp(max=1)
    if factor_M.is_cpu and not bool((factor_M < 1).any()):
        return  # saves a pass; on a GPU, looking costs more
    for gradient in gradients:
        gradient.mul_(factor_M[:, None])
