"""Runs stages in order: skips up-to-date stages, continues interrupted ones, publishes finished ones.

The state of a run is on disk, so the same call continues after Ctrl-C, a kill or a full disk.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from logging import Logger
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from . import artifact, termination
from .artifact import InputRecord, MadeFrom, Manifest
from .config.load import RunConfig
from .entry_points import providers
from .errors import OrreryError, StageError, StageInterrupted
from .jobs import fanout
from .jobs.job import describe_error
from .jobs.pool import usable_cores
from .kept import (
    KEPT_PER_STAGE,
    forget_artifact,
    is_kept,
    keep_artifact,
    keep_attempt,
    kept_places,
    remove_oldest,
    restore_attempt,
)
from .logging import ConsoleProgress, duration, logging_to
from .plan import EARLIER, Decision, check_all, check_machine, decide, decide_all, start_line
from .ranks import gathered
from .run_folder import (
    RUN_FILE,
    Attempt,
    attempt_file,
    disk_errors,
    jobs_folder,
    partial_folder,
    read_attempt,
    write_attempt,
)
from .sources import Source, input_records
from .stage import Context, Stage
from .status import read_run_file


@dataclass(frozen=True)
class Outcome:
    """Result of a stage."""

    stage: str
    status: Literal["fresh", "reused", "done", "failed", "interrupted", "detached", "waiting"]
    seconds: float = 0.0
    """Time over all attempts."""
    summary: str = ""
    made_in: str = ""
    """Run folder of an artifact that is reused from another run."""


def end_line(outcome: Outcome) -> Text:
    """The console line of a stage that has ended: `pack: done in 2.1 s, 480,000 transitions of 8 tasks`."""
    notes = {"fresh": "up to date", "reused": f"reused from {outcome.made_in}" if outcome.made_in else EARLIER}
    note = notes.get(outcome.status) or f"done in {duration(outcome.seconds)}"
    return Text.assemble((outcome.stage, "bold"), f": {note}{outcome.summary and f', {outcome.summary}'}")


@dataclass(frozen=True)
class RunFacts:
    """The `run` of a stage's Context: read-only."""

    folder: Path
    config: Mapping[str, Any]
    """Every key of the run with its final value."""
    stage_records: Mapping[str, Mapping[str, Any]]
    """Manifests, as dicts, of the stages that come earlier and are published."""


class StageTerminated(termination.Terminated):
    """One of `termination.SIGNALS` during a stage."""

    def __init__(self, stage: str, by: str = "") -> None:
        super().__init__(by)
        self.stage = stage

    def __str__(self) -> str:
        return f"{super().__str__()} in stage {self.stage}; rerun the command to continue"


def run(
    config: RunConfig,
    stages: Mapping[str, type[Stage]],
    *,
    log: Logger,
    progress: Any,
    on_start: Callable[[Decision], None] = lambda decision: None,
    on_end: Callable[[Outcome], None] = lambda outcome: None,
    only: str | None = None,
    anew: Collection[str] = (),
    redone: dict[str, Path] | None = None,
) -> list[Outcome]:
    """Bring every stage of `config` up to date, in order. The caller holds `locked(config.run_dir)`.

    Args:
        stages: classes by name, as `config.discover_stages` returns them.
        log, progress: handed to the stages.
        on_start, on_end: called around each stage; `on_start` only for stages that work.
        only: run this stage, up to date or not, from what the others have published so far, and no other.
        anew: run these stages, up to date or not.
        redone: artifacts by key that were run again for other runs of a series, which take them; grows.
    Raises:
        OrreryError: a check failed (before anything ran) or a stage did.
        StageInterrupted, StageTerminated: Ctrl-C, or one of `termination.SIGNALS`; the same call continues.
        Detached: jobs of a stage go on in SLURM; the same call gathers them.
    """
    sources = check_all(config, stages)
    outcomes = {name: Outcome(name, "waiting") for name in config.settings.stages}
    verified: set[Source] = set()
    for name in outcomes:
        _recover(config.run_dir / name)
    if only is not None:
        return [_run_only(config, stages, only, sources[only], log, progress)]
    check_machine(config, stages, decide_all(config, stages, sources, anew, redone))
    for name in outcomes:
        termination.check()
        decision = decide(config, stages[name], name, sources[name], anew=name in anew, redone=redone)
        if decision.action == "fresh":
            outcomes[name] = _outcome(_published(config.run_dir / name), "fresh")
        elif decision.made is not None:
            with disk_errors(config.run_dir):
                records = input_records(config, stages[name], name, sources[name])
                final = config.run_dir / name
                if (former := read_attempt(final)) is None or former.key == decision.key:
                    _take_up(decision, final)
                keep_artifact(final, decision.key)
                manifest = artifact.take(decision.made, final, records)
                forget_artifact(decision.made, final)
            made_in = "" if is_kept(decision.made) else str(decision.made.parent)
            outcomes[name] = replace(_outcome(manifest, "reused"), made_in=made_in)
        else:
            on_start(decision)
            log.debug("%s", start_line(decision))
            # For `status`, also when this process is killed: what stands there until the stage ends.
            outcomes[name] = Outcome(name, "interrupted")
            _write_run_file(config, outcomes)
            try:
                for source in (one for many in sources[name].values() for one in many):
                    if source not in verified:
                        artifact.verify(source.folder, source.kind)
                        verified.add(source)
                manifest = _run_stage(config, stages[name], decision, sources[name], log, progress)
            except fanout.Detached:
                outcomes[name] = Outcome(name, "detached")
                _write_run_file(config, outcomes)
                raise
            except Exception:
                outcomes[name] = Outcome(name, "failed")
                _write_run_file(config, outcomes)
                raise
            outcomes[name] = _outcome(manifest, "done")
            if redone is not None and decision.anew:
                redone[decision.key] = config.run_dir / name
        on_end(outcomes[name])
        log.debug("%s", end_line(outcomes[name]))
    _write_run_file(config, outcomes)
    return list(outcomes.values())


def run_on_console(
    config: RunConfig,
    stages: Mapping[str, type[Stage]],
    console: Console,
    *,
    on_start: Callable[[Decision], None] = lambda decision: None,
    on_end: Callable[[Outcome], None] = lambda outcome: None,
    only: str | None = None,
    anew: Collection[str] = (),
    redone: dict[str, Path] | None = None,
) -> list[Outcome]:
    """`run`, with messages and progress on the console and all of it, tracebacks too, in the run's log.txt."""
    with logging_to(console, config.run_dir / "log.txt") as log:
        words = ["orrery", "run", config.experiment, *config.overrides, f"run_dir={config.run_dir}"]
        log.debug("%s", shlex.join(words))
        try:
            progress = ConsoleProgress(console)
            with disk_errors(config.run_dir):
                return run(
                    config,
                    stages,
                    log=log,
                    progress=progress,
                    on_start=on_start,
                    on_end=on_end,
                    only=only,
                    anew=anew,
                    redone=redone,
                )
        except BaseException as error:
            log.debug("stopped: %s", describe_error(error), exc_info=True)
            raise


def _run_stage(
    config: RunConfig,
    stage: type[Stage],
    decision: Decision,
    sources: Mapping[str, list[Source]],
    log: Logger,
    progress: Any,
) -> Manifest:
    name, key, final = decision.stage, decision.key, config.run_dir / decision.stage
    partial = partial_folder(final)
    others = providers(name, stage.calls)
    # Before the stage reads them: what changes meanwhile must count as changed.
    records = input_records(config, stage, name, sources)
    with disk_errors(config.run_dir):
        attempt = _take_up(decision, final) or Attempt(
            key, MadeFrom(config.resolved[name], records, artifact.version_of(others))
        )
        _remove_oldest(final, log)
        # Named before its folder exists, so that no folder can be taken for one of another key.
        write_attempt(final, attempt, running=True)
        partial.mkdir(exist_ok=True)
        context = Context(
            folder=partial,
            inputs={input_name: [source.folder for source in many] for input_name, many in sources.items()},
            workers=config.settings.workers or usable_cores(),
            threads=config.settings.threads or usable_cores(),
            log=log,
            progress=progress,
            run=RunFacts(config.run_dir, config.resolved, _records(config, name, sources)),
            earlier=() if decision.anew else (final, *kept_places(final)),
            providers=others,
        )
        started = time.time()
        try:
            worker = stage(config.stage_configs[name])
            with gathered(config, worker, name, context) as team:
                summary = worker.run(replace(context, team=team))
        except BaseException as error:
            with contextlib.suppress(OSError):  # a full disk must not hide the error
                spent = attempt.seconds + time.time() - started
                write_attempt(final, replace(attempt, seconds=spent), running=False)
            # Lightning turns Ctrl-C into SystemExit.
            if isinstance(error, KeyboardInterrupt) or (
                isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
            ):
                raise StageInterrupted(name) from error
            # Also where a process that this one waits for was stopped first, by the same signal.
            if isinstance(error, termination.Terminated) or termination.requested():
                raise StageTerminated(name, error.by if isinstance(error, termination.Terminated) else "") from error
            raise
        if changed := _changed(records, lambda: input_records(config, stage, name, sources)):
            log.warning(
                "%s: its input changed while it ran: %s. The result may mix old and new data; the next run recomputes "
                "it",
                name,
                ", ".join(changed),
            )
        manifest = artifact.finish(
            partial,
            kind=stage.output_kind,
            stage=name,
            key=key,
            config=config.resolved[name],
            inputs=records,
            seconds=attempt.seconds + time.time() - started,
            summary=summary,
            providers=others,
        )
        _publish(final, key)
        _remove_oldest(final, log)
    return manifest


def _take_up(decision: Decision, final: Path) -> Attempt | None:
    """The attempt to continue, moved to its place; an attempt with other settings is kept, any other one removed."""
    if decision.attempt == final:
        return read_attempt(final)
    fanout.stop(jobs_folder(final))
    keep_attempt(final, decision.key)
    attempt_file(final).unlink(missing_ok=True)  # first: half of an attempt must not be continued
    artifact.remove(partial_folder(final))
    if decision.anew:
        artifact.remove(jobs_folder(final))
    return None if decision.attempt is None else restore_attempt(decision.attempt, final)


def _publish(final: Path, key: str) -> None:
    """Put a finished attempt in the place of its artifact; one with another key is kept."""
    attempt_file(final).unlink(missing_ok=True)  # before its folder moves, so that it never stands beside the artifact
    keep_artifact(final, key)
    artifact.publish(partial_folder(final), final)
    fanout.prune(jobs_folder(final))


def _remove_oldest(final: Path, log: Logger) -> None:
    if removed := remove_oldest(final):
        log.info(
            "%s: kept artifacts of %d earlier settings; deleted the oldest %d", final.name, KEPT_PER_STAGE, removed
        )


def _recover(final: Path) -> None:
    """Complete or undo what an interrupted command left of a stage; an attempt that can be continued stays."""
    if (partial_folder(final) / artifact.MANIFEST).exists():
        _publish(final, _published(partial_folder(final)).key)
    artifact.recover(partial_folder(final), final)
    artifact.remove(artifact.unfinished(attempt_file(final)))
    artifact.remove(artifact.unfinished(final))
    if not attempt_file(final).exists():
        artifact.remove(partial_folder(final))
        fanout.prune(jobs_folder(final))


def _changed(before: Mapping[str, list[InputRecord]], now: Callable[[], Mapping[str, list[InputRecord]]]) -> list[str]:
    """The inputs that have changed."""
    try:
        records = now()
    except OrreryError as error:  # one is gone
        return [str(error)]
    return [one.path for name, many in before.items() for one in many if one not in records[name]]


def _run_only(
    config: RunConfig,
    stages: Mapping[str, type[Stage]],
    name: str,
    sources: Mapping[str, list[Source]],
    log: Logger,
    progress: Any,
) -> Outcome:
    published = {
        input_name: [source for source in many if source.folder.is_dir()] for input_name, many in sources.items()
    }
    for source in (one for many in published.values() for one in many):
        artifact.verify(source.folder, source.kind)
    decision = replace(decide(config, stages[name], name, published), action="run", attempt=None)
    return _outcome(_run_stage(config, stages[name], decision, published, log, progress), "done")


def _outcome(manifest: Manifest, status: Literal["fresh", "reused", "done"]) -> Outcome:
    return Outcome(manifest.stage, status, manifest.seconds, manifest.summary)


def _records(config: RunConfig, name: str, sources: Mapping[str, list[Source]]) -> dict[str, dict[str, Any]]:
    """Manifests of the published stages that come before stage `name`, or that what it reads was made from."""
    earlier = config.settings.stages[: config.settings.stages.index(name)]
    waiting = [source.folder for many in sources.values() for source in many]
    made_from: dict[str, Manifest] = {}
    while waiting:
        folder = waiting.pop()
        if folder.parent == config.run_dir and folder.name not in {*earlier, *made_from} and folder.is_dir():
            made_from[folder.name] = manifest = _published(folder)
            waiting += [Path(record.path) for records in manifest.inputs.values() for record in records]
    found = dict(sorted(made_from.items(), key=lambda each: each[1].created))
    folders = {other: config.run_dir / other for other in earlier}
    found |= {other: _published(folder) for other, folder in folders.items() if folder.is_dir()}
    return {other: asdict(manifest) for other, manifest in found.items()}


def _published(folder: Path) -> Manifest:
    manifest = artifact.read_manifest(folder)
    if manifest is None:
        raise StageError(f"{folder} has no {artifact.MANIFEST}; delete it and rerun the command")
    return manifest


def _of_earlier_commands(config: RunConfig) -> list[dict[str, Any]]:
    """What run.json says of published stages that this command does not list."""
    with contextlib.suppress(StageError):  # there is none yet, or it is damaged and about to be written again
        return [
            outcome
            for outcome in read_run_file(config.run_dir)["stages"]
            if outcome["stage"] not in config.settings.stages and (config.run_dir / outcome["stage"]).is_dir()
        ]
    return []


def _write_run_file(config: RunConfig, outcomes: Mapping[str, Outcome]) -> None:
    facts = {
        "experiment": config.experiment,
        "overrides": list(config.overrides),
        "config": config.resolved,
        "versions": artifact.package_versions(),
        "stages": [*_of_earlier_commands(config), *map(asdict, outcomes.values())],
    }
    with disk_errors(config.run_dir):
        artifact.write_json(config.run_dir / RUN_FILE, facts)
