"""Open-loop prediction error on held-out episodes.

Dimension letters: K tasks, H diagnosed horizons, S sums; in latents, S states of a window and D latent.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict

from ..training.module import diagnosed_horizons
from .networks import WorldModel

DIAGNOSED_HORIZONS = (1, 4, 8, 16, 50, 100, 200)
"""Steps ahead at which open-loop prediction is measured on held-out episodes, as far as the windows reach."""

SHORTEST_VALIDATION = 16
"""Steps of a validation window, of models that are trained on shorter ones too."""


def validation_length(horizon: int, longest_prediction: int | None) -> int:
    """Steps of the validation windows of a model that is trained on windows of `horizon`."""
    length = max(horizon, SHORTEST_VALIDATION)
    return length if longest_prediction is None else min(length, longest_prediction)


class OpenLoopError:
    """Sums over held-out windows that give open-loop R^2 of the reward and the latent error, per task and horizon."""

    def __init__(self, num_tasks: int, length: int, device: torch.device) -> None:
        """`length`: steps of the windows."""
        self.horizons = diagnosed_horizons(DIAGNOSED_HORIZONS, length)
        # [K, H, S]: count, sum r, sum r^2, sum (r_hat - r)^2, sum latent MSE.
        self.sums = torch.zeros(num_tasks, len(self.horizons), 5, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, model: WorldModel, batch: TensorDict) -> None:
        """Unroll the windows of `batch` open loop; windows that are shorter than a horizon don't count for it."""
        task, action = batch["task"], batch["action"].transpose(0, 1)
        z_SBD = model.rollout(model.encode(batch["observation"][:, 0], task), action, task)
        for h, horizon in enumerate(self.horizons):
            t = horizon - 1
            reward, valid = batch["reward"][:, t].double(), batch["valid"][:, t].double()
            error = model.decode_reward(model.reward_logits(z_SBD[t], action[t], task)).double() - reward
            target = model.encode(batch["observation"][:, horizon], task)
            latent_error = (z_SBD[horizon] - target).square().mean(-1).double()
            terms = torch.stack([torch.ones_like(reward), reward, reward**2, error**2, latent_error], -1)
            self.sums[:, h].index_add_(0, task, terms * valid[:, None])

    def result(self) -> dict[str, torch.Tensor]:
        """R^2 of the reward [K, H] (NaN if the reward does not vary) and mean latent MSE [K, H]."""
        count, total, squares, error, latent = self.sums.unbind(-1)
        variance = squares - total**2 / count
        r2 = torch.where(variance > 1e-8 * count, 1 - error / variance, torch.nan)
        return {"reward_r2": r2, "latent_mse": latent / count}
