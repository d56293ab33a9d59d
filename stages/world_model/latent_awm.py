"""An action world model over latents: all later latents at once, from the first one and the actions alone.

    z^_{t+1} = g(z_1, a_{1:t}, task)

No predicted latent is ever an input, so every path of a gradient from a latent to an earlier action is as long as the
network is deep, however many steps lie between them. Tokens are the first latent, then one action each; a causal
transformer runs over them in one pass, or one by one with cached keys and values, with the same numbers.

Dimension letters: B rows (any leading dimensions), T steps, D latent, A action, E task embedding, W width.
Source: Ma et al. (arXiv 2402.05290), whose model predicts observations of one task. Ours predicts latents of many,
trained on TD-MPC2's consistency loss (arXiv 2310.16828 eq. 3), whose targets are encodings with their gradient stopped.
"""

from __future__ import annotations

import torch
from torch import nn

from ..layers.transformer import Cache, Transformer, embedding_layer
from .config import WorldModelConfig

Carry = tuple[int, list[Cache]]
"""Tokens so far, and the keys and values of each block. Rows are flattened to one dimension."""


class LatentActionModel(nn.Module):
    """The transformer and its decoder. Sizes come from the config; `decoder` maps [..., W] to latents [..., D]."""

    def __init__(self, config: WorldModelConfig, action_dim: int, decoder: nn.Module) -> None:
        super().__init__()
        self.embed_first = embedding_layer(config.latent_dim + config.task_dim, config.awm_width)
        self.embed_action = embedding_layer(action_dim + config.task_dim, config.awm_width)
        self.backbone = Transformer(config.awm_width, config.awm_layers, config.awm_heads, config.awm_horizon + 1)
        self.decoder = decoder

    def start(self, z_BD: torch.Tensor, embedding_BE: torch.Tensor) -> Carry:
        """The carry of a rollout from z."""
        return self.backbone.step(self.embed_first(torch.cat([z_BD, embedding_BE], -1)).flatten(0, -2), None)[1]

    def advance(self, carry: Carry, action_BA: torch.Tensor, embedding_BE: torch.Tensor) -> tuple[torch.Tensor, Carry]:
        """The latent [B, D] after one more action, and the next carry."""
        token = self.embed_action(torch.cat([action_BA, embedding_BE], -1))
        output, carry = self.backbone.step(token.flatten(0, -2), carry)
        return self.decoder(output.view_as(token)), carry

    def forward(self, z_BD: torch.Tensor, action_TBA: torch.Tensor, embedding_BE: torch.Tensor) -> torch.Tensor:
        """Latents [T, B, D] after each action, in one pass."""
        first = self.embed_first(torch.cat([z_BD, embedding_BE], -1))
        embedding_TBE = embedding_BE.expand(len(action_TBA), *embedding_BE.shape)
        actions = self.embed_action(torch.cat([action_TBA, embedding_TBE], -1))
        token_NBW = torch.cat([first[None], actions])
        output = self.backbone(token_NBW.flatten(1, -2).transpose(0, 1))[:, 1:].transpose(0, 1)
        return self.decoder(output.reshape(actions.shape))
