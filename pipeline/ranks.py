"""One command started several times, by srun, torchrun or by hand, whose processes do some stages together.

The first process runs the command as ever: it holds the lock, decides what is to be done, and publishes. The others
follow it. In the run folder, which all have to see, they find that it calls them to a stage; they run that stage in the
folder that it works in, and meet it there. They end when no stage is left that needs them.

Why not torch's TCPStore and the environments of Lightning, which derive an address and a port from the launcher:
the run folder has to be shared anyway, for data, checkpoints and the lock; the others wait hours in it for `collect` or
`pack`, while no server needs to run; the lock says who the first process is and whether it lives, which a store that
dies with it cannot tell from one that has not started. A port is known in advance only by convention: Lightning's for
srun is 15000 + the last digits of the job id, the same for two commands in one allocation, and torchrun's belongs to
its agent. The first process therefore picks a free port when training starts, and the call hands it on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .artifact import MANIFEST, write_json
from .config.load import RunConfig
from .errors import ConfigError, OrreryError, StageError
from .jobs.pool import usable_cores
from .lock import lock_holder
from .logging import LOGGER_NAME
from .plan import plan
from .reading import decode, reading_made
from .stage import Context, Stage

CALL = "call.json"
RANKS_SUFFIX = ".ranks"
POLL_SECONDS = 1.0

_VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun's, which can also be set by hand
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),  # srun's
)


@dataclass(frozen=True)
class Launch:
    """The rank of this process among those started together."""

    rank: int
    world_size: int
    local_rank: int
    """Rank on this machine."""


def launched() -> Launch | None:
    """The launch described by srun or torchrun; None if this process was started alone."""
    for names in _VARIABLES:
        if all(name in os.environ for name in names):
            launch = Launch(*(int(os.environ[name]) for name in names))
            return launch if launch.world_size > 1 else None
    return None


@dataclass(frozen=True)
class WorkerGroup:
    """The processes that run a stage together, as seen by one of them."""

    launch: Launch
    folder: Path
    """Folder in which they meet."""
    call: Mapping[str, Any]
    """Message of the first process to all: `id`, `stage`, `folder` and `inputs`; `said` once they meet."""
    limit_seconds: float
    """Timeout for joining."""

    def meet(self, say: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return, in every process, what the first one says, once all are here.

        Raises:
            StageError: one is missing after `limit_seconds`.
        """
        if self.launch.rank > 0:
            arrived = {"id": self.call["id"], "place": f"process {os.getpid()} on {socket.gethostname()}"}
            write_json(self.folder / f"{self.launch.rank}.json", arrived)
            return self.call["said"]
        self.folder.mkdir(exist_ok=True)
        write_json(self.folder / CALL, {**self.call, "said": say})
        deadline = time.monotonic() + self.limit_seconds
        while missing := [rank for rank in range(1, self.launch.world_size) if not self._is_here(rank)]:
            if time.monotonic() > deadline:
                raise StageError(
                    f"{self.call['stage']} needs {self.launch.world_size} processes, but after "
                    f"{self.limit_seconds / 60:g} min these are missing: rank {', '.join(map(str, missing))}. Start "
                    f"each with this command; each must see {self.folder.parent}. See their output; wait_min changes "
                    "the timeout"
                )
            time.sleep(POLL_SECONDS)
        return say

    def _is_here(self, rank: int) -> bool:
        arrived = _read(self.folder / f"{rank}.json")
        return arrived is not None and arrived["id"] == self.call["id"]


def check_launch(config: RunConfig, stages: Mapping[str, type[Stage]], launch: Launch) -> None:
    """Raise a ConfigError unless some stage is to be done by as many processes as were started."""
    wanted = {name: stages[name](config.stage_configs[name]).processes for name in config.settings.stages}
    several = {name: processes for name, processes in wanted.items() if processes > 1}
    if not several:
        raise ConfigError(
            f"this command was started {launch.world_size} times (by srun or torchrun), but none of its stages uses "
            "several processes; start it once, or set pretrain.trainer.nodes and pretrain.trainer.devices"
        )
    for name, processes in several.items():
        if processes != launch.world_size:
            raise ConfigError(
                f"{name} needs {processes} processes ({name}.trainer: nodes x devices), but {launch.world_size} were "
                "started; start one per device and node"
            )


@contextlib.contextmanager
def gathered(config: RunConfig, stage: Stage, name: str, context: Context) -> Iterator[WorkerGroup | None]:
    """The worker group of stage `name` in the first process; None if it runs the stage alone."""
    launch = launched()
    if launch is None or stage.processes == 1:
        yield None
        return
    folder = _folder(config, name)
    shutil.rmtree(folder, ignore_errors=True)
    call = {
        "id": uuid.uuid4().hex,
        "caller": lock_holder(config.run_dir),
        "stage": name,
        "folder": str(context.folder.absolute()),
        "inputs": {key: [str(path.absolute()) for path in paths] for key, paths in context.inputs.items()},
    }
    try:
        yield WorkerGroup(launch, folder, call, config.settings.wait_min * 60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def follow(
    config: RunConfig,
    stages: Mapping[str, type[Stage]],
    launch: Launch,
    *,
    progress: Any,
    on_join: Callable[[str], None] = lambda stage: None,
) -> None:
    """Join the first process in every stage that it calls to, until none is left.

    Raises:
        StageError: there is no first process, or it has ended before those stages were done.
    """
    names = [name for name in config.settings.stages if stages[name](config.stage_configs[name]).processes > 1]
    limit = config.settings.wait_min * 60
    done: set[str] = set()
    published: list[int] | None = None
    first: str | None = None
    alone_since = time.monotonic()
    while True:
        holder = lock_holder(config.run_dir)
        call = next((call for name in names if (call := _read(_folder(config, name) / CALL)) is not None), None)
        if call is not None and call["caller"] == holder and call["id"] not in done:
            done.add(call["id"])
            on_join(call["stage"])
            _join(config, stages, launch, call, limit, progress)
            continue
        # Looking what is up to date may open large data sets.
        if published != (published := _published(config)) and _up_to_date(config, stages, names):
            return
        if holder is not None:
            first, alone_since = holder, time.monotonic()
        elif first is not None and time.monotonic() - alone_since > 10 * POLL_SECONDS:
            if _up_to_date(config, stages, names):
                return
            raise StageError(
                f"rank {launch.rank}: the first process ({first}) ended before {', '.join(names)} was done; see its "
                "output. Rerun the same command to continue"
            )
        elif time.monotonic() - alone_since > limit:
            raise StageError(
                f"rank {launch.rank}: no process has started in {config.run_dir.absolute()} for {limit / 60:g} min. "
                f"Start the first of the {launch.world_size} processes with this command; all must see that folder. "
                "wait_min changes the timeout"
            )
        time.sleep(POLL_SECONDS)


def _join(
    config: RunConfig,
    stages: Mapping[str, type[Stage]],
    launch: Launch,
    call: Mapping[str, Any],
    limit_seconds: float,
    progress: Any,
) -> None:
    name = call["stage"]
    context = Context(
        folder=Path(call["folder"]),
        inputs={key: [Path(path) for path in paths] for key, paths in call["inputs"].items()},
        workers=1,
        threads=config.settings.threads or usable_cores(),
        log=logging.getLogger(LOGGER_NAME),
        progress=progress,
        team=WorkerGroup(launch, _folder(config, name), call, limit_seconds),
    )
    stages[name](config.stage_configs[name]).run(context)


def _up_to_date(config: RunConfig, stages: Mapping[str, type[Stage]], names: Sequence[str]) -> bool:
    try:
        return all(decision.action == "fresh" for decision in plan(config, stages) if decision.stage in names)
    except OrreryError:  # of a folder that the first process is about to publish, say
        return False


def _published(config: RunConfig) -> list[int]:
    """When each stage was published; 0 where it was not."""
    manifests = [config.run_dir / name / MANIFEST for name in config.settings.stages]
    return [path.stat().st_mtime_ns if path.is_file() else 0 for path in manifests]


def _folder(config: RunConfig, name: str) -> Path:
    return config.run_dir / f"{name}{RANKS_SUFFIX}"


@dataclass(frozen=True)
class _Message:
    """What processes write for each other; a call names its caller and the stage, too."""

    id: str
    caller: str = ""
    stage: str = ""


def _read(path: Path) -> dict[str, Any] | None:
    with reading_made(path):
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):  # also where it vanishes while it is opened
            return None
        values: dict[str, Any] = json.loads(text)
        decode(_Message, values)
        return values
