"""Open-loop prediction error on held-out episodes.

Dimension letters: K tasks, H diagnosed horizons, S sums; in latents, S states of a window and D latent.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict

from ...datasets.datamodule import WindowData
from ...datasets.schema import TaskTable
from ..training.module import HARDLY_VARIES, diagnosed_horizons, r2
from .networks import WorldModel

DIAGNOSED_HORIZONS = (1, 4, 8, 16, 50, 100, 200)
"""Steps ahead at which open-loop prediction is measured on held-out episodes, as far as the windows reach."""

SHORTEST_VALIDATION = 16
"""Steps of a validation window, of models that are trained on shorter ones too."""


def validation_length(horizon: int, longest_prediction: int | None) -> int:
    """Steps of the validation windows of a model that is trained on windows of `horizon`."""
    length = max(horizon, SHORTEST_VALIDATION)
    return length if longest_prediction is None else min(length, longest_prediction)


def reward_stds(data: WindowData | None, table: TaskTable) -> torch.Tensor:
    """[K] float64 standard deviations of the reward in the training data; 0 for tasks that it lacks."""
    found = {} if data is None else data.reward_std()
    return torch.tensor([found.get(name, 0.0) for name in table.names], dtype=torch.float64)


class OpenLoopError:
    """Sums over held-out windows that give open-loop R^2 of the reward and the latent error, per task and horizon."""

    def __init__(self, reward_std_K: torch.Tensor, length: int) -> None:
        """Args:
        reward_std_K: standard deviation of the reward in the training data.
        length: steps of the windows.
        """
        self.horizons = diagnosed_horizons(DIAGNOSED_HORIZONS, length)
        # [K, H, S]: count, sum r, sum r^2, sum (r_hat - r)^2, sum latent MSE.
        shape = (len(reward_std_K), len(self.horizons), 5)
        self.sums = torch.zeros(shape, dtype=torch.float64, device=reward_std_K.device)
        self._least_std_K1 = HARDLY_VARIES * reward_std_K[:, None]

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
        """R^2 of the reward [K, H] (NaN if it hardly varies) and mean latent MSE [K, H]."""
        *reward, latent = self.sums.unbind(-1)
        return {"reward_r2": r2(torch.stack(reward), self._least_std_K1), "latent_mse": latent / self.sums[..., 0]}
