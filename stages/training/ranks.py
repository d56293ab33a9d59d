"""Training processes: those that a command starts end with it; those that are started with it find each other."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import socket
from collections.abc import Iterator
from typing import Any

import lightning
from lightning.fabric.plugins.environments import LightningEnvironment
from torch import distributed
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from ...pipeline import termination
from ...pipeline.errors import OrreryError, StageError
from ...pipeline.ranks import Launch

_OWN_ERROR = re.compile(rf"^{re.escape(OrreryError.__module__)}\.\w+: (.*)", re.MULTILINE | re.DOTALL)
"""In the traceback of a rank, which torch hands on as text."""


class EndWithParent(lightning.Callback):
    """Ends a spawned rank whose parent has died.

    A killed command leaves its ranks behind; they would train on, and write checkpoints under the run that continues.
    """

    def on_train_batch_start(self, *args: Any) -> None:
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            os._exit(1)  # at once: nobody is left to report to, and the other ranks do the same


@contextlib.contextmanager
def started_here() -> Iterator[None]:
    """Name what becomes of ranks that this process starts.

    Raises:
        Terminated: a signal asked one of them to end; all have saved.
        StageError: one of them raised an error that is meant for the user, or was ended from outside.
    """
    try:
        yield
    except ProcessExitedException as error:
        if error.exit_code == termination.EXIT_UNFINISHED:
            raise termination.Terminated from error
        raise StageError(
            f"rank {error.error_index} of the training was killed ({error.signal_name or error.exit_code}; "
            "SIGKILL often means that memory ran out). The same command continues from the last checkpoint"
        ) from error
    except ProcessRaisedException as error:
        if raised := _OWN_ERROR.search(str(error)):
            raise StageError(raised[1].strip()) from error
        raise


def pass_on_termination() -> None:
    """Send SIGTERM to the ranks that this process has started."""
    for process in multiprocessing.active_children():
        process.terminate()


def meeting_point() -> dict[str, Any]:
    """Where this process, as the first one, can be reached by the others."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    return {"address": os.environ.get("MASTER_ADDR") or socket.gethostname(), "port": port}


class StartedTogether(LightningEnvironment):
    """Processes that srun, torchrun or somebody has started, one for each device."""

    def __init__(self, launch: Launch, devices: int, address: str, port: int) -> None:
        super().__init__()
        self._launch, self._devices, self._address, self._port = launch, devices, address, port

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self._address

    @property
    def main_port(self) -> int:
        return self._port

    def world_size(self) -> int:
        return self._launch.world_size

    def global_rank(self) -> int:
        return self._launch.rank

    def local_rank(self) -> int:
        return self._launch.local_rank

    def node_rank(self) -> int:
        return self._launch.rank // self._devices


OF_GLOO = ("gloo", "Application timeout caused pair closure")
"""Words of its errors: nearly all name its source file. The second reaches a wait that another one's timeout ends."""


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Undo what connects this process to the others when the block ends, and name a lost connection as what it is.

    Raises:
        StageError: another process was lost.
    """
    # torchrun's own meeting place would be taken for ours.
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or any(words in str(error) for words in OF_GLOO):
            raise StageError(
                "lost the connection to another training process; see the output of that process. The same command "
                f"continues from the last checkpoint ({_first_line(error)})"
            ) from error
        raise
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
