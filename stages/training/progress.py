"""Lightning's steps as one line of the pipeline's progress display."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning


def quiet_lightning() -> None:
    """Leave out what is no news of this run: which devices exist, how ranks meet, what Lightning itself will change.

    Its warnings about the training still show.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # On a login node of a cluster, where the run was started by hand on purpose.
    warnings.filterwarnings("ignore", "The `srun` command is available on your system but is not used", UserWarning)
    warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated", FutureWarning)


class StepProgress(lightning.Callback):
    """Advances with the optimiser's steps and shows the latest loss."""

    def __init__(self, progress: Any, total_steps: int, description: str) -> None:
        self._progress, self._total, self._description = progress, total_steps, description
        self._shown = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        quiet_lightning()  # a spawned rank begins here
        self.__dict__.update(state)

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._shown = trainer.global_step
        if trainer.is_global_zero:
            self._display = self._progress(self._description, total=self._total, completed=self._shown)
            self._task = self._display.__enter__()

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any, **kwargs: Any) -> None:
        if not trainer.is_global_zero or trainer.global_step == self._shown:
            return
        self._task.advance(trainer.global_step - self._shown)
        self._shown = trainer.global_step
        # At other steps nothing new is logged, and reading it would wait for the device.
        logs = trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if logs and (loss := trainer.logged_metrics.get("train/total")) is not None:
            self._task.note(f"loss {float(loss):.3f}")

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._close(trainer)

    def on_exception(self, trainer: lightning.Trainer, *args: Any) -> None:
        self._close(trainer)

    def _close(self, trainer: lightning.Trainer) -> None:
        if trainer.is_global_zero and hasattr(self, "_display"):
            self._display.__exit__(None, None, None)
            del self._display
