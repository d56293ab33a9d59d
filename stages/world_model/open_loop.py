"""How well a model predicts held-out episodes open loop.

Dimension letters: K tasks, H diagnosed horizons, S sums.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict

from .networks import WorldModel

DIAGNOSED_HORIZONS = (1, 4, 8, 16)
"""Decisions ahead at which open-loop prediction is measured on held-out episodes."""


class OpenLoopError:
    """Sums over held-out windows that give open-loop R^2 of the reward and the latent error, per task and horizon."""

    def __init__(self, num_tasks: int, device: torch.device) -> None:
        # Per task and horizon: count, sum r, sum r^2, sum (r_hat - r)^2, sum latent MSE.
        self.sums_KHS = torch.zeros(num_tasks, len(DIAGNOSED_HORIZONS), 5, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, model: WorldModel, batch: TensorDict) -> None:
        """Unroll the windows of `batch` open loop; windows that are shorter than a horizon don't count for it."""
        task = batch["task"]
        z = model.encode(batch["observation"][:, 0], task)
        for t in range(batch["action"].shape[1]):
            z, logits, _ = model.step(z, batch["action"][:, t], task)
            if t + 1 not in DIAGNOSED_HORIZONS:
                continue
            reward, valid = batch["reward"][:, t].double(), batch["valid"][:, t].double()
            error = model.decode_reward(logits).double() - reward
            latent_error = (z - model.encode(batch["observation"][:, t + 1], task)).square().mean(-1).double()
            terms = torch.stack([torch.ones_like(reward), reward, reward**2, error**2, latent_error], -1)
            self.sums_KHS[:, DIAGNOSED_HORIZONS.index(t + 1)].index_add_(0, task, terms * valid[:, None])

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """R^2 of the reward [K, H] (NaN where the reward does not vary) and mean latent MSE [K, H]."""
        count, total, squares, error, latent = self.sums_KHS.unbind(-1)
        variance = squares - total**2 / count
        r2 = torch.where(variance > 1e-8 * count, 1 - error / variance, torch.nan)
        return r2, latent / count
