"""Training of a sequence model: one LightningModule with the interface of the latent model's.

Dimension letters: B batch, T steps of a window, O observation, K tasks, H diagnosed horizons.
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
from tensordict import TensorDict

from ...pipeline.errors import StageError
from ...pipeline.seeding import derive_seed
from ..training.config import OptimizerConfig
from .config import SequenceLossConfig
from .losses import sequence_losses
from .networks import SequenceModel

DIAGNOSED_HORIZONS = (1, 5, 10, 20, 50, 100, 200, 500)
"""Steps ahead at which open-loop prediction is measured, as far as the validation windows reach."""


def diagnosed_horizons(length: int) -> tuple[int, ...]:
    """Those of `DIAGNOSED_HORIZONS` that lie below `length`, and `length`."""
    return (*(horizon for horizon in DIAGNOSED_HORIZONS if horizon < length), length)


class OpenLoopSkill:
    """Sums over windows that give R^2 of open-loop predictions, per task and horizon.

    R^2 of an observation column compares with its mean at that horizon, so a column that only depends on the time gives
    no credit; the R^2 of the observation is the mean over columns that vary.
    """

    def __init__(self, model: SequenceModel, length: int, device: torch.device) -> None:
        self.horizons = diagnosed_horizons(length)
        self._index = torch.tensor(self.horizons, device=device) - 1
        columns = model.table.observation_dim + 1  # the reward is the last
        # Count, sum, sum of squares, sum of squared errors.
        shape = (4, len(model.table), len(self.horizons), columns)
        self.sums_SKHC = torch.zeros(shape, dtype=torch.float64, device=device)

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
        self.sums_SKHC.index_add_(1, task, terms)

    def result(self, model: SequenceModel) -> tuple[torch.Tensor, torch.Tensor]:
        """R^2 of the observation [K, H] and of the reward [K, H]; NaN if nothing varies."""
        count, total, squares, error = self.sums_SKHC
        variance = squares - total.square() / count
        r2_KHC = torch.where(variance > 1e-6 * count, 1 - error / variance, torch.nan)
        predicted_K1O = (model.observation_mask_KO * (model.clock_step_KO == 0))[:, None].bool()
        own_KHO = torch.where(predicted_K1O, r2_KHC[..., :-1], torch.nan)
        return own_KHO.nanmean(-1), r2_KHC[..., -1]


class SequenceModelTraining(lightning.LightningModule):
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
        super().__init__()
        self.model = model
        self._loss, self._optimizer = loss, optimizer
        self._total_steps, self._log_every, self._seed = total_steps, log_every, seed

    def training_step(self, batch: TensorDict, batch_index: int) -> torch.Tensor:
        # A function of micro-step and rank: nothing to save for an exact resume.
        accumulate = self.trainer.accumulate_grad_batches
        micro_step = self.global_step * accumulate + batch_index % accumulate
        stream = derive_seed("sequence model", self._seed, micro_step, self.global_rank)
        generator = torch.Generator(self.device).manual_seed(stream)
        losses = sequence_losses(self.model, batch, self._loss, generator)
        # Not at every step, since reading a loss waits for the device; at those that Lightning writes down at once.
        if (self.global_step + 1) % self._log_every == 0:
            check_finite(losses, self.global_step)
            self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()}, sync_dist=True)
        return losses["total"]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.model.parameters(), lr=self._optimizer.lr)
        schedule = torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1.0, end_factor=self._optimizer.final_lr_scale, total_iters=self._total_steps
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_validation_epoch_start(self) -> None:
        self._skill: OpenLoopSkill | None = None

    def validation_step(self, batch: TensorDict, batch_index: int) -> None:
        if self._skill is None:
            self._skill = OpenLoopSkill(self.model, batch["action"].shape[1], self.device)
        self._skill.add(self.model, batch)

    def on_validation_epoch_end(self) -> None:
        assert self._skill is not None
        self._skill.sums_SKHC = self.trainer.strategy.reduce(self._skill.sums_SKHC, reduce_op="sum")
        observation_KH, reward_KH = self._skill.result(self.model)
        values = {}
        for k, task in enumerate(self.model.table):
            for h, horizon in enumerate(self._skill.horizons):
                values[f"observation_r2/{horizon}/{task.name}"] = observation_KH[k, h].float()
                values[f"reward_r2/{horizon}/{task.name}"] = reward_KH[k, h].float()
        self.log_dict(values, sync_dist=True)  # equal on all ranks already: the sums were reduced


def check_finite(losses: dict[str, torch.Tensor], step: int) -> None:
    """Raise a StageError that names the losses which are not finite."""
    broken = [name for name, value in losses.items() if not torch.isfinite(value)]
    if broken:
        raise StageError(
            f"sequence model: loss not finite at step {step} ({', '.join(broken)}). "
            "Lower the learning rate, or look at the data with `orrery inspect RUN/pack`"
        )
