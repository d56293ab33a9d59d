"""What training has in common for every model: logged losses, a rate that falls linearly, open-loop validation.

Dimension letters: K tasks, H diagnosed horizons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch
from tensordict import TensorDict

from ...pipeline.errors import StageError
from ...pipeline.memory import reuse_freed_memory
from .config import OptimizerConfig


class ModelTraining(lightning.LightningModule):
    """Base of the modules that train a model of a task table. `training_step` and its optimiser are the subclass's."""

    width = 0
    """Of the layers, for `narrows`; 0 if narrower products never pay."""

    model: Any
    _open_loop: Any

    def __init__(self, optimizer: OptimizerConfig, total_steps: int, log_every: int, seed: int) -> None:
        super().__init__()
        self._optimizer = optimizer
        self._total_steps, self._log_every, self._seed = total_steps, log_every, seed

    def new_open_loop(self, length: int) -> Any:
        """Sums of open-loop errors over windows of `length` steps, with `horizons`, `sums`, `add(model, batch)` and
        `result()`: [K, H] by the name of each metric."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        reuse_freed_memory()  # here, since this runs in every rank

    @property
    def logs_now(self) -> bool:
        """Not at every step, since reading a loss waits for the device; at those that Lightning writes down at once."""
        return (self.global_step + 1) % self._log_every == 0

    def log_losses(self, losses: Mapping[str, torch.Tensor]) -> None:
        """Raises StageError where one is not finite."""
        check_finite(losses, self.global_step)
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()}, sync_dist=True)

    def scheduled(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimiser with its rate falling linearly over all steps, as Lightning takes it."""
        scale = self._optimizer.final_lr_scale
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, scale, self._total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_validation_epoch_start(self) -> None:
        self._open_loop = None

    def validation_step(self, batch: TensorDict, batch_index: int) -> None:
        if self._open_loop is None:
            self._open_loop = self.new_open_loop(batch["action"].shape[1])
        self._open_loop.add(self.model, batch)

    def on_validation_epoch_end(self) -> None:
        assert self._open_loop is not None
        self._open_loop.sums = self.trainer.strategy.reduce(self._open_loop.sums, reduce_op="sum")
        values = {
            f"{metric}/{horizon}/{task}": value_KH[k, h].float()
            for metric, value_KH in self._open_loop.result().items()
            for k, task in enumerate(self.model.table.names)
            for h, horizon in enumerate(self._open_loop.horizons)
        }
        self.log_dict(values, sync_dist=True)  # equal on all ranks already: the sums were reduced


HARDLY_VARIES = 0.01
"""Standard deviation of held-out rewards, relative to that of the training data, below which R^2 says nothing about the
reward that policies earn: errors that do not matter to them make it -50,000, or shades of no reward make it 0.99."""


def r2(sums: torch.Tensor, least_std: torch.Tensor) -> torch.Tensor:
    """R^2 of predictions: 1 - squared error / variance; NaN where the standard deviation is below `least_std`, or 0.

    Args:
        sums: [4, ...] count, sum and sum of squares of what is predicted, and sum of squared errors.
        least_std: [...].
    """
    count, total, squares, error = sums
    variance = squares - total.square() / count
    least = torch.maximum(least_std.square() * count, 1e-12 * squares)  # of a constant, rounding is left
    return torch.where(variance > least, 1 - error / variance, torch.nan)


def diagnosed_horizons(ahead: Sequence[int], length: int) -> tuple[int, ...]:
    """Those of `ahead` that lie below `length`, and `length`."""
    return (*(horizon for horizon in ahead if horizon < length), length)


def check_finite(losses: Mapping[str, torch.Tensor], step: int) -> None:
    """Raise a StageError that names the losses which are not finite."""
    if broken := [name for name, value in losses.items() if not torch.isfinite(value)]:
        raise StageError(
            f"loss not finite at step {step} ({', '.join(broken)}). Lower optimizer.lr, or look at the data with "
            "`orrery inspect RUN/pack`"
        )
