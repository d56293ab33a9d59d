"""Training of the world model: one LightningModule that holds the losses' weights, the optimiser and the diagnostics.

Dimension letters: T decisions of a window, B batch, K tasks, H diagnosed horizons.
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
import torch.nn.functional as F
from tensordict import TensorDict

from ...pipeline.errors import StageError
from .config import LossConfig, OptimizerConfig
from .losses import horizon_mean, soft_cross_entropy
from .networks import WorldModel

DIAGNOSED_HORIZONS = (1, 4, 8, 16)
"""Decisions ahead at which open-loop prediction is measured on held-out episodes."""


def rollout_losses(
    model: WorldModel, batch: TensorDict, config: LossConfig, reward_weight_K: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Losses of one batch of windows, unrolled open loop from the first observation.

    consistency: MSE(z_t, stop_gradient(encode(o_t))); reward: soft cross-entropy of (z_t, a_t) against r_t, times the
    task's weight; continuation: BCE of the continue logit of z_{t+1} against 1 - terminated_t.

    Args:
        batch: as `WindowSampler.batch` gives it.
        reward_weight_K: [K].
    Returns:
        Scalars: consistency, reward, continuation (0 where nothing terminates), total.
    Source: TD-MPC2 (arXiv 2310.16828) eq. 3, without its value term.
    """
    observation = batch["observation"].transpose(0, 1)
    action = batch["action"].transpose(0, 1)
    valid_TB = batch["valid"].T.to(batch["reward"].dtype)
    task = batch["task"]
    with torch.no_grad():
        target_z = model.encode(observation[1:], task.expand(len(action), -1))
    latents = [model.encode(observation[0], task)]
    for action_t in action:
        latents.append(model.next_latent(latents[-1], action_t, task))
    z, task_TB = torch.stack(latents), task.expand(len(action), -1)
    consistency_TB = (z[1:] - target_z).square().mean(-1)
    reward_TB = soft_cross_entropy(model.reward_logits(z[:-1], action, task_TB), batch["reward"].T, model.bins_M)
    losses = {
        "consistency": horizon_mean(consistency_TB, valid_TB, config.rho),
        "reward": horizon_mean(reward_TB, valid_TB * reward_weight_K[task], config.rho),
        "continuation": consistency_TB.new_zeros(()),
    }
    continue_TB = model.continue_logits(z[1:], task_TB)
    if continue_TB is not None:
        goes_on_TB = 1 - batch["terminated"].T.to(batch["reward"].dtype)
        bce_TB = F.binary_cross_entropy_with_logits(continue_TB, goes_on_TB, reduction="none")
        losses["continuation"] = horizon_mean(bce_TB, valid_TB, config.rho)
    losses["total"] = (
        config.consistency * losses["consistency"]
        + config.reward * losses["reward"]
        + config.continuation * losses["continuation"]
    )
    return losses


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


class WorldModelTraining(lightning.LightningModule):
    """Optimiser and logging around `rollout_losses`."""

    reward_weight_K: torch.Tensor

    def __init__(
        self,
        model: WorldModel,
        loss: LossConfig,
        optimizer: OptimizerConfig,
        reward_weight_K: torch.Tensor,
        total_steps: int,
        log_every: int,
    ) -> None:
        super().__init__()
        self.model = model
        self._loss, self._optimizer = loss, optimizer
        self._total_steps, self._log_every = total_steps, log_every
        self.register_buffer("reward_weight_K", reward_weight_K, persistent=False)

    def training_step(self, batch: TensorDict, batch_index: int) -> torch.Tensor:
        losses = rollout_losses(self.model, batch, self._loss, self.reward_weight_K)
        if self.global_step % self._log_every == 0:  # reading a loss waits for the device, so not at every step
            _check_finite(losses, self.global_step)
            self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()}, sync_dist=True)
        return losses["total"]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.model.renormalise_task_embedding()

    def configure_optimizers(self) -> Any:
        config = self._optimizer
        encoder = list(self.model.encoder.parameters())
        in_encoder = {id(parameter) for parameter in encoder}
        rest = [parameter for parameter in self.model.parameters() if id(parameter) not in in_encoder]
        groups: list[dict[str, Any]] = [
            {"params": encoder, "lr": config.lr * config.encoder_lr_scale},
            {"params": rest},
        ]
        optimizer = torch.optim.Adam(groups, lr=config.lr)
        schedule = torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1.0, end_factor=config.final_lr_scale, total_iters=self._total_steps
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_validation_epoch_start(self) -> None:
        self._open_loop = OpenLoopError(len(self.model.table), self.device)

    def validation_step(self, batch: TensorDict, batch_index: int) -> None:
        self._open_loop.add(self.model, batch)

    def on_validation_epoch_end(self) -> None:
        self._open_loop.sums_KHS = self.trainer.strategy.reduce(self._open_loop.sums_KHS, reduce_op="sum")
        r2_KH, latent_KH = self._open_loop.result()
        values = {}
        for k, task in enumerate(self.model.table):
            for h, horizon in enumerate(DIAGNOSED_HORIZONS):
                values[f"reward_r2/{horizon}/{task.name}"] = r2_KH[k, h].float()
                values[f"latent_mse/{horizon}/{task.name}"] = latent_KH[k, h].float()
        self.log_dict(values, sync_dist=True)  # equal on all ranks already: the sums were reduced


def _check_finite(losses: dict[str, torch.Tensor], step: int) -> None:
    broken = [name for name, value in losses.items() if not torch.isfinite(value)]
    if broken:
        raise StageError(
            f"world model: loss not finite at step {step} ({', '.join(broken)}). "
            "Lower pretrain.optimizer.lr, or look at the data with `orrery inspect RUN/pack`"
        )
