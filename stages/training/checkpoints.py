"""Training checkpoints with exact resume."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import lightning

from ...pipeline import termination
from ...pipeline.artifact import unfinished


class Checkpoints(lightning.Callback):
    """Saves the state of the training every `every` optimiser steps, and when a signal asks for the end, when it also
    ends the training, on all ranks at the same step. (Lightning's own answer stops without saving, and its ranks may
    each wait for the others.)

    Lightning logs and validates a step after the hook that saves, and a continued training leaves out both. So a
    checkpoint has another name until they are done: killed before that, the training continues from the one before.
    """

    def __init__(self, file: Path, every: int) -> None:
        self._file, self._unfinished, self._every = file, unfinished(file), every
        self._saved = self._ending = False

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        termination.answer_again()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        # Not at every step: the ranks have to agree, which costs an exchange.
        if step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._ending = trainer.strategy.reduce_boolean_decision(termination.requested(), all=False)
        if self._ending or step % self._every == 0:
            trainer.save_checkpoint(self._unfinished)
            self._saved = True

    def on_train_batch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        self._finish(trainer)
        if self._ending and multiprocessing.parent_process() is not None:
            raise SystemExit(termination.EXIT_UNFINISHED)  # the process that waits for this rank raises Terminated
        if self._ending:
            raise termination.Terminated

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._finish(trainer)

    def _finish(self, trainer: lightning.Trainer) -> None:
        if self._saved and trainer.is_global_zero:
            self._unfinished.replace(self._file)
        self._saved = False
