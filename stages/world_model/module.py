"""Training of the latent world model as a LightningModule.

Dimension letters: S states of a window, B batch, D latent, K tasks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import distributed

from ...pipeline.seeding import derive_seed
from ..training.config import OptimizerConfig
from ..training.module import ModelTraining
from .config import LossConfig
from .networks import WorldModel
from .objective import Draws, prior_values, rollout_losses
from .open_loop import OpenLoopError, reward_stds
from .values import percentile_range, prior_loss


class WorldModelTraining(ModelTraining):
    """An update is TD-MPC2's: a step of the model, then one of the policy prior on the latents of the same batch, then
    one of the target values.

    The prior has its own optimiser, outside of Lightning's loop: its loss needs the values that the model's step has
    just changed, and a second optimiser of Lightning's would count its steps as the trainer's.
    """

    reward_weight_K: torch.Tensor
    value_range: torch.Tensor

    def __init__(
        self,
        model: WorldModel,
        loss: LossConfig,
        optimizer: OptimizerConfig,
        reward_weight_K: torch.Tensor,
        total_steps: int,
        log_every: int,
        seed: int = 0,
        compiled: bool = False,
    ) -> None:
        super().__init__(optimizer, total_steps, log_every, seed)
        self.model, self._loss = model, loss
        self.width = model.config.mlp_dim
        self.register_buffer("reward_weight_K", reward_weight_K, persistent=False)
        self.register_buffer("value_range", torch.ones(()))
        self._compiled = compiled
        self._has_values = model.config.num_q > 0
        self._prior_state: dict[str, Any] | None = None
        self._prior_metrics: dict[str, torch.Tensor] = {}
        self._reward_std_K: torch.Tensor | None = None
        self._rollouts: list[tuple[torch.Tensor, TensorDict, Draws]] = []
        """Of the micro-batches of this step."""
        if self._has_values:
            # Ranks exchange the gradients of what requires one; those of the prior are exchanged where it learns.
            model.policy_prior.requires_grad_(False)

    def new_open_loop(self, length: int) -> OpenLoopError:
        if self._reward_std_K is None:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            self._reward_std_K = reward_stds(data, self.model.table).to(self.device)
        return OpenLoopError(self._reward_std_K, length)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        # Here, not before: a compiled function cannot be sent to the rank that is to run it.
        self._losses = torch.compile(rollout_losses, fullgraph=True) if self._compiled else rollout_losses

    def training_step(self, batch: TensorDict, batch_index: int) -> torch.Tensor:
        draws = self._draw(batch) if self._has_values else None
        count_T = self._count(batch["valid"].T)
        losses, z = self._losses(self.model, batch, self._loss, self.reward_weight_K, draws, count_T)
        if draws is not None:
            self._rollouts.append((z, batch, draws))
        if self.logs_now:
            self.log_losses(losses | self._prior_metrics)
        return losses["total"]

    def _draw(self, batch: TensorDict) -> Draws:
        """Random numbers of this micro-batch: a function of seed, step and window, not of the rank."""
        micro_step = self.global_step * self.trainer.accumulate_grad_batches + len(self._rollouts)
        B, T, A = batch["action"].shape
        world_size = self.trainer.world_size
        generator = torch.Generator(self.device).manual_seed(derive_seed("pretrain", self._seed, micro_step))
        draws = Draws.of(generator, T, B * world_size, A, self.model.config.num_q)
        if self.model.config.dropout:  # draws from the global stream
            torch.manual_seed(derive_seed("dropout", self._seed, micro_step, self.trainer.global_rank))
        return draws.of_rank(self.trainer.global_rank, world_size)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.model.renormalise_task_embedding()
        if self._has_values:
            self._update_prior()
            self.model.update_target_values(self._loss.target_rate)
            self._rollouts.clear()

    def _update_prior(self) -> None:
        """One step of the policy prior on the latents of this step's rollouts."""
        prior, config = self.model.policy_prior.requires_grad_(True), self._loss
        values, entropies, valids = [], [], []
        # Not in half precision, since these gradients are not scaled.
        narrow = self.trainer.precision == "bf16-mixed"
        for z, batch, draws in self._rollouts:
            with torch.autocast(self.device.type, torch.bfloat16) if narrow else contextlib.nullcontext():
                value_SB, entropy_SB = prior_values(self.model, z, batch["task"], draws, config)
            values.append(value_SB)
            entropies.append(entropy_SB)
            # A state counts where the data took an action in it; the last one, where the episode went on.
            valid_TB = batch["valid"].T
            goes_on_B = valid_TB[-1] & ~batch["terminated"].T[-1]
            valids.append(torch.cat([valid_TB, goes_on_B[None]]).to(value_SB.dtype))
        value_SB, entropy_SB, valid_SB = (torch.cat(parts, 1) for parts in (values, entropies, valids))
        self.value_range.lerp_(percentile_range(_of_every_rank(value_SB[0].detach())), config.scale_rate)
        count_S = self._count(valid_SB)
        loss = prior_loss(value_SB / self.value_range, entropy_SB, valid_SB, config.entropy, config.rho, count_S)
        parameters = list(prior.parameters())
        loss, *gradients = _mean_over_ranks([loss.detach(), *torch.autograd.grad(loss, parameters)])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.on_before_optimizer_step(self._prior_optimizer)  # as Lightning does for its own
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._optimizer.clip_norm)
        for group in self._prior_optimizer.param_groups:
            group["lr"] = self.optimizers().param_groups[-1]["lr"]  # type: ignore[union-attr]
        self._prior_optimizer.step()
        self._prior_optimizer.zero_grad(set_to_none=True)
        prior.requires_grad_(False)
        # The same on all ranks: the next logged step shows them, and may follow a checkpoint, which one rank writes.
        self._prior_metrics = {"prior": loss, "prior_grad_norm": norm, "value_range": self.value_range.clone()}

    def _count(self, valid_TB: torch.Tensor) -> torch.Tensor | None:
        """Valid entries of each step, mean over ranks. None if every rank has as many: alone, or where nothing
        terminates."""
        if not (distributed.is_initialized() and self.model.models_termination):
            return None
        return _mean_over_ranks([valid_TB.sum(1, dtype=torch.float32)])[0]

    def configure_optimizers(self) -> Any:
        config = self._optimizer
        encoder = list(self.model.encoder.parameters())
        in_encoder = {id(parameter) for parameter in encoder}
        learned = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": encoder, "lr": config.lr * config.encoder_lr_scale},
            {"params": [parameter for parameter in learned if id(parameter) not in in_encoder]},
        ]
        if self._has_values:
            prior = self.model.policy_prior.parameters()
            self._prior_optimizer = torch.optim.Adam(prior, lr=config.lr, eps=1e-5, fused=True)
        # By group: an optimiser that is fused as a whole unscales gradients itself, and Lightning then refuses to clip.
        return self.scheduled(torch.optim.Adam([{**group, "fused": True} for group in groups], lr=config.lr))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._has_values:
            checkpoint["prior"] = {"optimizer": self._prior_optimizer.state_dict(), "metrics": self._prior_metrics}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._prior_state = checkpoint.get("prior")  # the optimiser does not exist yet

    def on_train_start(self) -> None:
        if self._prior_state is not None:
            self._prior_optimizer.load_state_dict(self._prior_state["optimizer"])
            self._prior_metrics = {name: value.to(self.device) for name, value in self._prior_state["metrics"].items()}
            self._prior_state = None


def _of_every_rank(x_B: torch.Tensor) -> torch.Tensor:
    """[B] of this rank -> [B * ranks]."""
    if not distributed.is_initialized():
        return x_B
    parts = [torch.empty_like(x_B) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, x_B.contiguous())
    return torch.cat(parts)


def _mean_over_ranks(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Average over ranks in one exchange: each exchange costs more than its content."""
    if not distributed.is_initialized():
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
