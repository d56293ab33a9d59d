"""Training of a sequence model: one LightningModule with the interface of the latent model's.

Dimension letters: B batch, T steps of a window, O observation, K tasks, H diagnosed horizons.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict

from ...pipeline.seeding import derive_seed
from ..training.config import OptimizerConfig
from ..training.module import HARDLY_VARIES, ModelTraining, diagnosed_horizons, r2
from .config import SequenceLossConfig
from .losses import sequence_losses
from .networks import SequenceModel

DIAGNOSED_HORIZONS = (1, 5, 10, 20, 50, 100, 200, 500)
"""Steps ahead at which open-loop prediction is measured, as far as the validation windows reach."""


class OpenLoopSkill:
    """Sums over windows that give R^2 of open-loop predictions, per task and horizon.

    R^2 of an observation column compares with its mean at that horizon, so a column that only depends on time does not
    count; the R^2 of the observation is the mean over columns that vary.
    """

    def __init__(self, model: SequenceModel, length: int, device: torch.device) -> None:
        self.horizons = diagnosed_horizons(DIAGNOSED_HORIZONS, length)
        self._predicted_K1O = (model.observation_mask_KO * (model.clock_step_KO == 0))[:, None].bool()
        self._index = torch.tensor(self.horizons, device=device) - 1
        columns = model.table.observation_dim + 1  # the reward is the last
        # [S, K, H, C]: count, sum, sum of squares, sum of squared errors.
        shape = (4, len(model.table), len(self.horizons), columns)
        self.sums = torch.zeros(shape, dtype=torch.float64, device=device)
        # Observations are in units of their standard deviation.
        self._least_std_K1C = torch.full((len(model.table), 1, columns), 1e-3, dtype=torch.float64, device=device)
        self._least_std_K1C[:, 0, -1] = HARDLY_VARIES * model.reward_scale_K

    @torch.no_grad()
    def add(self, model: SequenceModel, batch: TensorDict) -> None:
        """Predict the windows of `batch` from their first observation and actions."""
        task, observation, action = batch["task"], batch["observation"], batch["action"]
        predicted = model.predict(observation[:, 0], action, task)
        real = model.scale(observation[:, 1:], task)[:, self._index]
        found = model.scale(predicted, task)[:, self._index]
        reward = batch["reward"][:, self._index]
        if model.config.reward_head:
            before = torch.cat([observation[:, :1], predicted[:, :-1]], 1)
            task_BT = task[:, None].expand(action.shape[:2])
            found_reward = model.reward(before, action, predicted, task_BT)[:, self._index]
        else:
            found_reward = torch.full_like(reward, torch.nan)
        real = torch.cat([real, reward[..., None]], -1).double()
        found = torch.cat([found, found_reward[..., None]], -1).double()
        valid = batch["valid"][:, self._index].double()[..., None]
        terms = torch.stack([torch.ones_like(real), real, real.square(), (found - real).square()]) * valid
        self.sums.index_add_(1, task, terms)

    def result(self) -> dict[str, torch.Tensor]:
        """R^2 of the observation [K, H] and of the reward [K, H]; NaN if nothing varies."""
        r2_KHC = r2(self.sums, self._least_std_K1C)
        own_KHO = torch.where(self._predicted_K1O, r2_KHC[..., :-1], torch.nan)
        return {"observation_r2": own_KHO.nanmean(-1), "reward_r2": r2_KHC[..., -1]}


class SequenceModelTraining(ModelTraining):
    """Optimiser and logging around `sequence_losses`."""

    def __init__(
        self,
        model: SequenceModel,
        loss: SequenceLossConfig,
        optimizer: OptimizerConfig,
        total_steps: int,
        log_every: int,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, total_steps, log_every, seed)
        self.model, self._loss = model, loss

    def new_open_loop(self, length: int) -> OpenLoopSkill:
        return OpenLoopSkill(self.model, length, self.device)

    def training_step(self, batch: TensorDict, batch_index: int) -> torch.Tensor:
        # A function of micro-step and rank: nothing to save for an exact resume.
        accumulate = self.trainer.accumulate_grad_batches
        micro_step = self.global_step * accumulate + batch_index % accumulate
        stream = derive_seed("sequence model", self._seed, micro_step, self.global_rank)
        generator = torch.Generator(self.device).manual_seed(stream)
        losses = sequence_losses(self.model, batch, self._loss, generator)
        if self.logs_now:
            self.log_losses(losses)
        return losses["total"]

    def configure_optimizers(self) -> Any:
        return self.scheduled(torch.optim.Adam(self.model.parameters(), lr=self._optimizer.lr))
