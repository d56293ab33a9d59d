"""What a stage is: a frozen config, declared inputs, one output folder, and `run(context)`.

A stage reads only its inputs and writes only `context.folder`; the runner publishes that folder under
the stage's name by renaming it. A stage that was interrupted finds what it had written still there,
so `run` must either continue from it or overwrite it.

An entry point in the group `orrery.stages` gives a stage its name. Its module is imported to read its config, also by
commands that run nothing, so it imports torch and the like only inside `run`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from . import artifact
from .errors import StageError
from .run_folder import PARTIAL_SUFFIX, jobs_folder

RUN_KEYS = ("tasks", "seeds", "seed", "algorithms", "loggers")
"""Keys of a run that its stages share."""

RUN_GROUPS = ("fanout",)
"""Groups of settings, dataclasses in the Config of stages, that a run has, too, for all stages that have them; unless
the experiment or the command line sets a key for one stage."""


@dataclass(frozen=True)
class Input:
    """An artifact that a stage reads."""

    kind: str
    """Kind of the artifact, some stage's `output_kind`: datasets, store, world_model, policies, scores."""
    optional: bool = False
    many: bool = False
    """Read every artifact of this kind that the run has produced so far, not only the latest."""
    outside: bool = False
    """Read only artifacts given by `inputs.NAME=PATH`, never those of the run."""
    facts: Callable[[Path], Any] | None = None
    """Reads facts from an artifact that the run does not make, for `check_input`; must be cheap and import no torch. If
    a stage of the run makes the artifact, its `promise` states the facts."""


class ProgressTask(Protocol):
    """A progress line. `advance` moves it; `note` shows a short text (a loss, a score) beside it."""

    def advance(self, amount: float = 1) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class Context:
    """Passed by the runner to a stage."""

    folder: Path
    """Output folder. It exists, and holds the files of an interrupted attempt with the same key."""
    inputs: Mapping[str, Sequence[Path]]
    """Verified artifact folders by input name; a list even if `many` is False (length 0 or 1)."""
    workers: int
    """Processes that the stage may start."""
    threads: int
    """Torch threads of this process."""
    log: logging.Logger
    progress: Any
    """`progress(description, total, completed=0)` is a context manager that yields a ProgressTask."""
    run: Any = None
    """Read-only facts about the run, for the report: `run.folder`, `run.config` (a plain dict)."""
    earlier: Sequence[Path] = ()
    """Artifacts that this stage has made in this run with earlier settings, the latest first; their jobs may be beside
    them. Some of their content may be reused; nothing of it has been verified."""
    providers: str = ""
    """Packages other than Orrery whose code decides the result, with versions (`entry_points.providers`)."""
    team: Any = None
    """The processes that run this stage together (a `ranks.WorkerGroup`), if several were started and the stage uses
    them."""

    @property
    def jobs(self) -> Path:
        """Folder of the job folders of this stage (see `fanout`). It lies beside `folder`, because logs are not part of
        the artifact."""
        return jobs_folder(self.folder.with_name(self.logged_as))

    @property
    def logs(self) -> Path:
        """Folder of what loggers write, of all stages of the run; no part of any artifact."""
        return self.folder.with_name("logs")

    @property
    def logged_as(self) -> str:
        """Name of the stage in `logs`."""
        return self.folder.name.removesuffix(PARTIAL_SUFFIX)

    def input(self, name: str) -> Path:
        """The single artifact folder of input `name`."""
        (folder,) = self.inputs[name]
        return folder

    def optional_input(self, name: str) -> Path | None:
        """The single artifact folder of input `name`, if there is one."""
        return self.input(name) if self.inputs.get(name) else None


class Stage:
    """Base class of stages. Subclasses set `Config` and `output_kind`, and implement `run`."""

    Config: ClassVar[type]
    """A frozen dataclass; every field has a default."""
    inputs: ClassVar[Mapping[str, Input]] = {}
    output_kind: ClassVar[str]
    algorithms: ClassVar[Sequence[str]] = ()
    """Algorithms that this stage trains policies with; the run's `algorithms` choose among those of all stages. A stage
    with several has a key `algorithms`, whose default is what it trains if the run names none. Empty: not a policy
    stage, it runs whenever it is listed."""
    run_keys: ClassVar[Sequence[str]] = RUN_KEYS
    """Fields of Config that take the run's value of that name, unless the experiment or the command line sets them."""
    calls: ClassVar[Sequence[str]] = ()
    """Groups of entry points that `run` calls: versions of other packages that add to them count in the key."""
    about_run: ClassVar[bool] = False
    """The output depends on `context.run` too, which no key holds: one of another run is never reused."""
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
        """Do the work. Return the one-line summary that is printed and stored: the most important number first."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise an OrreryError for invalid settings. Called for all stages before anything runs."""

    def check_machine(self) -> None:
        """Raise an OrreryError for missing packages, devices or connections. Called before anything runs, for the
        stages that will run."""

    def promise(self, inputs: Mapping[str, Sequence[Any]]) -> Any:
        """Return facts on the artifact that `run` will make, of the type that consumers of its kind expect; None if
        they are unknown.

        Args:
            inputs: facts on every input by name, as in `check_inputs`.
        """
        return None

    def check_input(self, name: str, folder: Path, facts: Any) -> None:
        """Raise an OrreryError for an unsuitable input. Called before anything runs.

        Args:
            name: of the input.
            folder: the artifact, which is not there yet where a stage of this run is to make it.
            facts: what that stage promises, or what `Input.facts` reads from the artifact; None if they are unknown.
        """

    def check_inputs(self, inputs: Mapping[str, Sequence[Any]]) -> None:
        """Raise an OrreryError for inputs that are unsuitable or incomplete together. Called after `check_input`, with
        the facts on every artifact by input name."""

    def outdated(self, folder: Path, inputs: Mapping[str, Sequence[Path]]) -> str | None:
        """Return why `run` would now write something else from the same config and inputs; None if it would not.

        Called for each published artifact whose config and inputs are as they were, so it must be cheap as a rule.

        Args:
            folder: the published artifact.
            inputs: artifact folders by input name, as in Context.
        """
        return None

    def earlier(self, context: Context, varying: Sequence[str]) -> Iterator[tuple[Path, artifact.Manifest]]:
        """Whole artifacts of `context.earlier`, the latest first, that were made by this version, from the same files
        outside the run, and with the same settings except `varying` and those that are not hashed. Their inputs may be
        others."""
        ignored = (*varying, *self.not_hashed)
        outside = [artifact.stat_digest(path) for path in self.reads()]
        settings = artifact.hash_json(artifact.without(asdict(self.config), ignored))
        version = artifact.version_of(context.providers)
        for folder in context.earlier:
            manifest, damage = artifact.examine(folder)
            if (
                manifest is not None
                and not damage
                and manifest.version == version
                and [record.digest for record in manifest.inputs.get(artifact.OUTSIDE, ())] == outside
                and artifact.hash_json(artifact.without(manifest.config, ignored)) == settings
            ):
                with contextlib.suppress(StageError):
                    artifact.verify(folder, manifest.kind)
                    yield folder, manifest

    def reads(self) -> Sequence[Path]:
        """Files and folders outside the run that `run` reads; the stage reruns if their size or time changes."""
        return ()
