"""Training processes that end with the command that started them."""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

import lightning


class EndWithParent(lightning.Callback):
    """Ends a spawned rank whose parent has died.

    A killed command leaves its ranks behind; they would train on, and write checkpoints under the run that continues.
    """

    def on_train_batch_start(self, *args: Any) -> None:
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            os._exit(1)  # at once: nobody is left to report to, and the other ranks do the same


def pass_on_termination() -> None:
    """Hand SIGTERM on to the ranks that this process has started."""
    for process in multiprocessing.active_children():
        process.terminate()
