"""Multi-layer perceptrons: one, and several of the same sizes as stacked weights.

Dimension letters: M members, B batch.
Source of the stacked blocks: PWM (arXiv 2407.02466) appendix B: Linear, activation, LayerNorm, in this order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from .activations import ACTIVATIONS
from .products import stacked_linear


def mlp(in_dim: int, units: Sequence[int], out_dim: int, activation: type[nn.Module] = nn.SiLU) -> nn.Sequential:
    """Linear layers of the given hidden widths with `activation` in between."""
    widths = [in_dim, *units]
    hidden = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), activation())]
    return nn.Sequential(*hidden, nn.Linear(widths[-1], out_dim))


class StackedMLP(nn.Module):
    """M perceptrons of the same sizes. Parameters have the member as first dimension."""

    def __init__(self, members: int, in_dim: int, units: Sequence[int], out_dim: int, activation: str = "mish") -> None:
        super().__init__()
        self._activation = ACTIVATIONS[activation]
        widths = [in_dim, *units, out_dim]
        pairs = list(pairwise(widths))
        self.weight = nn.ParameterList([torch.empty(members, a, b) for a, b in pairs])
        self.bias = nn.ParameterList([torch.zeros(members, 1, b) for _, b in pairs])
        self.norm_weight = nn.ParameterList([torch.ones(members, 1, b) for b in units])
        self.norm_bias = nn.ParameterList([torch.zeros(members, 1, b) for b in units])

    def forward(self, x: torch.Tensor, members: slice = slice(None)) -> torch.Tensor:
        """[M, B, in] -> [M, B, out]; `members`, a range, selects those that x holds."""
        M, last = len(self.weight[0]), len(self.weight) - 1
        every = members.start in (None, 0) and members.stop in (None, M)

        def own(parameter: torch.Tensor) -> torch.Tensor:
            return parameter if every else parameter[members]  # the gradient of a slice is a copy of the whole

        for i, (weight, bias) in enumerate(zip(self.weight, self.bias, strict=True)):
            x = stacked_linear(own(bias), x, own(weight))
            if i < last:
                normed = F.layer_norm(self._activation(x), x.shape[-1:])
                x = torch.addcmul(own(self.norm_bias[i]), normed, own(self.norm_weight[i]))
        return x

    @torch.no_grad()
    def initialise_uniform(self, member: int, generator: torch.Generator) -> None:
        """PyTorch's default Linear initialisation, U(-1/sqrt(in), 1/sqrt(in)), of one member."""
        for weight, bias in zip(self.weight, self.bias, strict=True):
            bound = 1 / math.sqrt(weight.shape[1])
            weight[member].uniform_(-bound, bound, generator=generator)
            bias[member].uniform_(-bound, bound, generator=generator)

    @torch.no_grad()
    def initialise_orthogonal(self, member: int, generator: torch.Generator) -> None:
        """Orthogonal with gain sqrt(2) and zero bias, of one member."""
        for weight, bias in zip(self.weight, self.bias, strict=True):
            # nn.init counts fan-in along the last dimension, as in nn.Linear's [out, in].
            nn.init.orthogonal_(weight[member].T, gain=math.sqrt(2), generator=generator)
            bias[member].zero_()
