"""Training processes that end with the command that started them, and save before they are ended."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import lightning

from ...pipeline import termination


class EndWithParent(lightning.Callback):
    """Ends a spawned rank whose parent has died.

    A killed command leaves its ranks behind; they would train on, and write checkpoints under the run that continues.
    """

    def on_train_batch_start(self, *args: Any) -> None:
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            os._exit(1)  # at once: nobody is left to report to, and the other ranks do the same


class SaveOnTermination(lightning.Callback):
    """On SIGTERM saves a checkpoint and ends the training, on all ranks at the same step.

    Lightning's own answer stops without saving, and its ranks may each wait for the others.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._saved = False

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        termination.answer_again()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Only at steps whose losses are logged next: those of another step would be lost, since they wait in memory.
        step, part = divmod(batch_idx + 1, trainer.accumulate_grad_batches)
        if part or step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        if trainer.strategy.reduce_boolean_decision(termination.requested(), all=False):
            trainer.save_checkpoint(self._checkpoint)
            self._saved = True

    def on_train_batch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        # Not before: logging and validation of the last step, which a run that continues leaves out, are done now.
        if self._saved and trainer.world_size > 1:
            raise SystemExit(termination.EXIT_UNFINISHED)  # the process that waits for this rank raises Terminated
        if self._saved:
            raise termination.Terminated


def pass_on_termination() -> None:
    """Hand SIGTERM on to the ranks that this process has started."""
    for process in multiprocessing.active_children():
        process.terminate()
