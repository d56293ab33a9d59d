"""Hidden activations and SimNorm, with kernels of our own where PyTorch's are slow on a CPU.

PyTorch's mish and its softmax over groups of 8 take a fifth of a world-model update there. Written as whole-tensor
operations, with the derivative made in the forward pass, they take a third and an eighth of that time (one thread,
256 x 512 float32). On other devices, in other types and inside torch.compile, PyTorch's own are used.

Source: Mish: Misra (arXiv 1908.08681). SimNorm: TD-MPC2 (arXiv 2310.16828) section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

Activation = Callable[[torch.Tensor], torch.Tensor]


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """x, in float32 if a product under autocast is narrower: norms, activations and losses are not."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def mish(x: torch.Tensor) -> torch.Tensor:
    """x tanh(softplus(x)), any shape."""
    if not _ours(x):
        return F.mish(x)
    if torch.is_grad_enabled() and x.requires_grad:
        return _Mish.apply(x)[0]
    _, h = _exponential_and_half(x)
    return h.div_(h + 1).mul_(x)


def simnorm(x: torch.Tensor, group: int) -> torch.Tensor:
    """Softmax within consecutive groups of the last dimension: [..., D] -> [..., D], each group sums to 1.

    Temperature 1.
    """
    if not _ours(x):
        return _softmax(x, group)
    if torch.is_grad_enabled() and x.requires_grad:
        return _SimNorm.apply(x, group)
    return _SimNorm.forward(x, group)  # `apply` takes 30 us, as long as all layers of a policy's encoder


ACTIVATIONS: dict[str, Activation] = {"mish": mish, "silu": F.silu, "relu": F.relu}


def _ours(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling()


def _exponential_and_half(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """e = e^x and h = e + e^2 / 2, with which tanh(softplus(x)) = h / (h + 1).

    It is 1 long before x = 20, where e is bounded so that no square overflows.
    """
    e = x.clamp(max=20).exp_()
    return e, torch.addcmul(e, e, e, value=0.5)


class _Mish(torch.autograd.Function):
    """Also returns its slope, which is all that the backward pass needs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        e, h = _exponential_and_half(x)
        u = h + 1
        t = h / u
        # t + x sigmoid(x) (1 - t^2), where sigmoid (1 - t^2) = e (1 + e) / u^2 = 2 (h - e / 2) / u^2
        slope = torch.addcmul(t, x, h.sub_(e, alpha=0.5).div_(u).div_(u), value=2)
        return t.mul_(x), slope

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, _: Any) -> torch.Tensor:
        (slope,) = ctx.saved_tensors
        return gradient * slope


class _SimNorm(torch.autograd.Function):
    """Sums over groups are products with a block of ones, which also spreads them back over the group."""

    @staticmethod
    def forward(x: torch.Tensor, group: int) -> torch.Tensor:
        if not _exponential_is_safe(x):
            return _softmax(x, group)
        exponential = x.exp()
        return exponential.div_(_group_sum(exponential, group))

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: torch.Tensor, group: int) -> tuple[torch.Tensor, int]:
        return _SimNorm.apply(x.movedim(in_dims[0], 0), group), 0

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        ctx.group = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (y,) = ctx.saved_tensors
        weighted = gradient * y
        return torch.addcmul(weighted, y, _group_sum(weighted, ctx.group), value=-1), None


def _softmax(x: torch.Tensor, group: int) -> torch.Tensor:
    return torch.softmax(x.unflatten(-1, (-1, group)), -1).flatten(-2)


def _exponential_is_safe(x: torch.Tensor) -> bool:
    """Whether exp neither overflows nor loses a group to underflow, so that softmax needs no largest element of each
    group. Outputs of a LayerNorm, which x is made of, are far from the bound."""
    if not x.numel():
        return True
    low, high = torch.aminmax(x)
    return bool(low > -60) and bool(high < 60)


def _group_sum(x: torch.Tensor, group: int) -> torch.Tensor:
    """[..., D] -> [..., D], every entry the sum of its group."""
    with torch.autocast("cpu", enabled=False):
        return (x.reshape(-1, group) @ _ones(group, x.dtype)).view_as(x)


@cache
def _ones(group: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.ones(group, group, dtype=dtype)
