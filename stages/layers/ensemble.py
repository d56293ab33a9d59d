"""Several small networks as one: stacked weights, batched products.

Dimension letters: N heads, n of them that are asked for, B batch (any leading dimensions), R rows of it, H hidden.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from .activations import ACTIVATIONS


class HeadEnsemble(nn.Module):
    """N perceptrons with two hidden layers that read the same input, as stacked weights: values, and the heads whose
    disagreement shows where the model is unsure.

    A layer is Linear, dropout (the first layer, where the weights learn), LayerNorm, activation; the last is Linear.
    Heads that are not asked for cost nothing.
    """

    def __init__(self, heads: int, in_dim: int, hidden_dim: int, out_dim: int, activation: str, dropout: float) -> None:
        super().__init__()
        self._activation, self._dropout = ACTIVATIONS[activation], dropout
        widths = [in_dim, hidden_dim, hidden_dim, out_dim]
        shapes = [(heads, b, a) for a, b in pairwise(widths)]
        self.weight = nn.ParameterList([nn.init.trunc_normal_(torch.empty(shape), std=0.02) for shape in shapes])
        self.bias = nn.ParameterList([torch.zeros(shape[:2]) for shape in shapes])
        self.norm_weight = nn.ParameterList([torch.ones(shape[:2]) for shape in shapes[:-1]])
        self.norm_bias = nn.ParameterList([torch.zeros(shape[:2]) for shape in shapes[:-1]])

    def forward(self, joint: torch.Tensor, heads: torch.Tensor | None = None, *, frozen: bool = False) -> torch.Tensor:
        """Args:
            joint: [B, in], (z, task embedding, action) side by side.
            heads: [n] which of the N; None is all.
            frozen: no gradient to the weights; one to `joint` still flows.
        Returns:
            [n, B, out].
        """

        def chosen(parameter: torch.Tensor) -> torch.Tensor:
            parameter = parameter.detach() if frozen else parameter
            return parameter if heads is None else parameter[heads]

        rows = joint.flatten(0, -2)
        weight = chosen(self.weight[0])
        # All heads read the same rows: one product for the first layer, [R, n * H] -> [n, R, H].
        x = F.linear(rows, weight.flatten(0, 1)).unflatten(-1, weight.shape[:2]).transpose(0, 1)
        for i in range(len(self.weight)):
            if i > 0:
                x = torch.bmm(x, chosen(self.weight[i]).transpose(1, 2))
            x = x + chosen(self.bias[i])[:, None]
            if i == len(self.weight) - 1:
                break
            if i == 0 and not frozen:
                x = F.dropout(x, self._dropout, self.training and torch.is_grad_enabled())
            scale, shift = chosen(self.norm_weight[i])[:, None], chosen(self.norm_bias[i])[:, None]
            x = self._activation(torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), scale))
        return x.unflatten(1, joint.shape[:-1])
