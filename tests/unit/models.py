"""Small world models with random weights."""

from __future__ import annotations

import torch
from orrery.stages.world_model.config import WorldModelConfig
from orrery.stages.world_model.networks import WorldModel

SMALL = WorldModelConfig(
    latent_dim=16, encoder_dim=12, mlp_dim=20, task_dim=6, num_bins=11, num_q=2, disagreement_heads=2
)


def random_model(table, config=SMALL):
    """A model whose every tensor is random, with statistics and angles of its own for every task."""
    torch.manual_seed(0)
    model = WorldModel(config, table)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn_like(value) * 0.3)
    for k, task in enumerate(table):
        model.set_observation_statistics(k, torch.randn(task.observation_dim), torch.rand(task.observation_dim) + 0.5)
        if model.angle_KO is not None:
            model.angle_KO[k, k : task.observation_dim] = 1
    return model.eval()
