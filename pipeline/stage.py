"""What a stage is: a frozen config, declared inputs, one output folder, and `run(context)`.

A stage reads only its inputs and writes only `context.folder`; the runner publishes that folder under
the stage's name by renaming it. A stage that was interrupted finds what it had written still there,
so `run` must either continue from it or overwrite it.

An entry point in the group `orrery.stages` gives a stage its name. Its module is imported to read its config, also by
commands that run nothing, so it imports torch and the like only inside `run`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from .run_folder import PARTIAL_SUFFIX, jobs_folder

RUN_KEYS = ("tasks", "seeds", "seed", "algorithms")
"""Keys of a run that its stages share."""


@dataclass(frozen=True)
class Input:
    """An artifact that a stage reads."""

    kind: str
    """Kind of the artifact, as some stage's `output_kind`: datasets, store, world_model, policies, scores."""
    optional: bool = False
    many: bool = False
    """Take every artifact of this kind that the run has made so far, not only the latest."""
    outside: bool = False
    """Take only what `inputs.NAME=PATH` gives, never what a stage of the run has made."""


class ProgressTask(Protocol):
    """One line of progress. `advance` moves it; `note` shows a short text (a loss, a score) beside it."""

    def advance(self, amount: float = 1) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class Context:
    """What the runner hands to a stage."""

    folder: Path
    """Where to write. Exists; holds what an interrupted attempt with the same key left."""
    inputs: Mapping[str, Sequence[Path]]
    """Verified artifact folders by input name; a list also where `many` is False (length 0 or 1)."""
    workers: int
    """Processes that the stage may start for parallel work."""
    threads: int
    """Torch threads of this process."""
    log: logging.Logger
    progress: Any
    """`progress(description, total, completed=0)` is a context manager that yields a ProgressTask."""
    run: Any = None
    """Read-only facts about the whole run, for the report: `run.folder`, `run.config` (a plain dict)."""
    earlier: Sequence[Path] = ()
    """Artifacts that this stage has made in this run with earlier settings, the latest first; their jobs may be beside
    them. Some of their content may be reused; nothing of it has been verified."""
    team: Any = None
    """The processes that do this stage together (a `ranks.Team`), where several were started and it asks for them."""

    @property
    def jobs(self) -> Path:
        """Folder for the job folders of this stage (see `fanout`): beside `folder`, since logs are no part of it."""
        return jobs_folder(self.folder.with_name(self.folder.name.removesuffix(PARTIAL_SUFFIX)))

    def input(self, name: str) -> Path:
        """The one artifact folder given for input `name`."""
        (folder,) = self.inputs[name]
        return folder


class Stage:
    """Base of every stage. Subclasses set the four class variables and `run`."""

    Config: ClassVar[type]
    """A frozen dataclass; every field has a default."""
    inputs: ClassVar[Mapping[str, Input]] = {}
    output_kind: ClassVar[str]
    algorithms: ClassVar[Sequence[str]] = ()
    """Algorithms that this stage trains policies with; the run's `algorithms` choose among those of all stages. A stage
    with several has a key `algorithms`, whose default is what it trains if the run names none. Empty: not a policy
    stage, it runs whenever it is listed."""
    run_keys: ClassVar[Sequence[str]] = RUN_KEYS
    """Fields of Config that take the run's value of the same name, unless the experiment or the command line sets them.
    A stage whose `tasks` selects among those of its input leaves out `tasks`."""
    not_hashed: ClassVar[Sequence[str]] = ()
    """Fields of Config, by dotted keys, that change speed, memory or how often something is logged, not the result:
    changing them neither makes an artifact stale nor discards an interrupted attempt. All others are hashed."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def check_class(cls) -> None:
        """Called when the entry point is loaded.

        Raises:
            TypeError: the class is not declared as a stage has to be.
        """
        if not is_dataclass(getattr(cls, "Config", None)) or not isinstance(getattr(cls, "output_kind", None), str):
            raise TypeError(f"{cls.__name__} must set Config, a frozen dataclass, and output_kind")
        if missing := [one.name for one in fields(cls.Config) if one.default is one.default_factory is MISSING]:
            raise TypeError(f"every field of {cls.Config.__name__} needs a default; missing: {', '.join(missing)}")

    @property
    def processes(self) -> int:
        """Started together with the same command, they may all do this stage: `run` is then called in each of them,
        with a `context.team`, and what the first one (rank 0) leaves in `context.folder` is the output."""
        return 1

    def run(self, context: Context) -> str:
        """Do the work. Returns the one-line summary that is shown and stored: the key number first."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise an OrreryError for what can be seen to be wrong before anything runs. Called for all stages first."""

    def check_machine(self) -> None:
        """Raise an OrreryError for what this machine or its network lacks. Called before anything runs, for the stages
        that will."""

    def check_input(self, name: str, folder: Path, maker: Any) -> None:
        """Raise an OrreryError for an input that can be seen not to serve. Called before anything runs.

        Args:
            name: of the input.
            folder: the artifact, which is not there yet where a stage of this run is to make it.
            maker: the config of that stage; None for an artifact made elsewhere.
        """

    def check_inputs(self, inputs: Mapping[str, Sequence[tuple[Path, Any]]]) -> None:
        """Raise an OrreryError for inputs that together can be seen not to serve, or not to be enough. Called after
        `check_input`, with (folder, maker) of every artifact by the name of the input."""

    def outdated(self, folder: Path, inputs: Mapping[str, Sequence[Path]]) -> str | None:
        """Return why `run` would now write something else, from the same config and inputs; None where it would not.

        Called for each published artifact whose config and inputs are as they were, so it must be cheap as a rule.

        Args:
            folder: the published artifact.
            inputs: artifact folders by input name, as in Context.
        """
        return None

    def reads(self) -> Sequence[Path]:
        """Files and folders outside the run that `run` reads; when their size or time changes the stage runs again."""
        return ()
