"""Whether the artifact of each stage is up to date, and what would run. Reads the disk, writes nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.text import Text

from . import artifact
from .artifact import MadeFrom
from .config.load import RunConfig
from .config.schema import nearest
from .entry_points import providers
from .errors import ConfigError
from .jobs.job import SUBMISSION
from .kept import is_kept, kept_places
from .keys import find_made, key_of, what_changed
from .lock import lock_holder
from .logging import duration
from .paths import user_path
from .run_folder import jobs_folder, partial_folder, read_attempt
from .sources import Source, check_world_model_is_used, find_sources, input_records
from .stage import Stage

Action = Literal["fresh", "reuse", "resume", "run"]

NOT_RUN = "not run yet"
EARLIER = "kept from earlier settings"


@dataclass(frozen=True)
class Decision:
    """The action that a stage needs, and why."""

    stage: str
    action: Action
    reason: str
    key: str
    """Hash of everything that decides the result. If an input does not exist yet, a stand-in that is equal for stages
    with the same result."""
    made: Path | None = None
    """The artifact: in the run folder if it is up to date, in another folder if it is reused; None if it has to be
    produced."""
    attempt: Path | None = None
    """What stands in place of the stage's folder beside the attempt to continue: itself, or where it is kept."""
    anew: bool = False
    """Whether to run although there may be an artifact or an attempt with this key, which is replaced."""
    waits: bool = False
    """Whether a stage that it reads runs first."""

    @property
    def would(self) -> str:
        """The action of a run, in a word for tables."""
        return {"fresh": "up to date", "resume": "continue"}.get(self.action, self.action)


def start_line(decision: Decision) -> Text:
    """The console line of a stage that starts: `pack: running`, `add: running (add.scale 1 -> 2)`."""
    verb = "continuing" if decision.action == "resume" else "running"
    reason = "" if decision.reason in ("", NOT_RUN) else f" ({decision.reason})"
    return Text(f"{decision.stage}: {verb}{reason}", style="dim")


def plan(config: RunConfig, stages: Mapping[str, type[Stage]], anew: Collection[str] = ()) -> list[Decision]:
    """Decide for each stage whether it is up to date, would continue or would run, and why. Writes nothing.

    Args:
        anew: stages to run whether they are up to date or not.
    Raises:
        OrreryError: what `run` would raise before its first stage.
    """
    return decide_all(config, stages, check_all(config, stages), anew)


def decide_all(
    config: RunConfig,
    stages: Mapping[str, type[Stage]],
    sources: Mapping[str, Mapping[str, list[Source]]],
    anew: Collection[str] = (),
    redone: Mapping[str, Path] | None = None,
) -> list[Decision]:
    """The same, with the sources found by `check_all`, and what this command has already run again, by key."""
    decisions: dict[str | None, Decision] = {}
    for name in config.settings.stages:
        waits = [s.stage for many in sources[name].values() for s in many if s.stage and not decisions[s.stage].made]
        read = {
            input_name: [replace(s, folder=decisions[s.stage].made or s.folder) if s.stage else s for s in many]
            for input_name, many in sources[name].items()
        }
        if waits:
            now = _made_from(config, stages[name], name, read, {one: decisions[one].key for one in waits})
            key = key_of(stages[name], name, now)
            decisions[name] = Decision(name, "run", f"{waits[0]} runs first", key, waits=True)
        else:
            decisions[name] = decide(config, stages[name], name, read, anew=name in anew, redone=redone)
    return list(decisions.values())


def check_all(config: RunConfig, stages: Mapping[str, type[Stage]]) -> dict[str, dict[str, list[Source]]]:
    """Let every stage check its config, and find the source of every input, before anything runs."""
    for folder in map(user_path, config.settings.reuse_from):
        # The folder of a study is not there before its first run.
        if not folder.is_dir() and folder.absolute() != config.run_dir.absolute().parent:
            raise ConfigError(f"reuse_from: there is no folder {folder.absolute()}")
    for name in config.settings.stages:
        stages[name](config.stage_configs[name]).check()
    found = {name: find_sources(config, stages, name) for name in config.settings.stages}
    check_world_model_is_used(config, stages, found)
    promised: dict[str, Any] = {}
    for name, sources in found.items():
        check_inputs(config, stages, name, sources, promised)
    return found


def check_inputs(
    config: RunConfig,
    stages: Mapping[str, type[Stage]],
    name: str,
    sources: Mapping[str, list[Source]],
    promised: dict[str, Any],
) -> None:
    """Let stage `name` check its inputs, and add the facts that it promises to `promised`.

    Args:
        promised: facts on the artifacts of earlier stages, by stage.
    """
    stage = stages[name](config.stage_configs[name])
    facts: dict[str, list[Any]] = {}
    for input_name, many in sources.items():
        read = stage.inputs[input_name].facts or (lambda folder: None)
        facts[input_name] = [promised[source.stage] if source.stage else read(source.folder) for source in many]
        for source, known in zip(many, facts[input_name], strict=True):
            stage.check_input(input_name, source.folder, known)
    stage.check_inputs(facts)
    promised[name] = stage.promise(facts)


def check_machine(config: RunConfig, stages: Mapping[str, type[Stage]], decisions: Sequence[Decision]) -> None:
    """Let the stages that would run check this machine.

    Raises:
        OrreryError: one cannot.
    """
    for decision in decisions:
        if decision.made is None:
            stages[decision.stage](config.stage_configs[decision.stage]).check_machine()


def decide(
    config: RunConfig,
    stage: type[Stage],
    name: str,
    sources: Mapping[str, list[Source]],
    *,
    anew: bool = False,
    redone: Mapping[str, Path] | None = None,
) -> Decision:
    """Compare what the stage would be made from with what its artifact was made from."""
    now = _made_from(config, stage, name, sources)
    key = key_of(stage, name, now)
    final = config.run_dir / name
    if anew and not stage.about_run and key in (redone or {}):
        return Decision(name, "reuse", "run again on request", key, (redone or {})[key])
    if anew:
        return Decision(name, "run", "run again on request", key, anew=True)
    manifest, damage = artifact.examine(final, stage.output_kind)
    worker = stage(config.stage_configs[name])
    folders = {input_name: [source.folder for source in many] for input_name, many in sources.items()}
    if damage:
        reason: str | None = damage  # making it again is what the error would ask for
    elif manifest is None:
        reason = NOT_RUN
    elif key_of(stage, name, manifest.made_from) != key:
        reason = what_changed(name, manifest.made_from, now, stage)
    else:
        reason = worker.outdated(final, folders)
    attempt = read_attempt(final)
    begun = attempt is not None and key_of(stage, name, attempt.made_from) == key
    # An attempt beside the artifact that it is to replace was asked for.
    if reason is None and not (begun and partial_folder(final).is_dir()):
        return Decision(name, "fresh", "", key, final)
    elsewhere = [] if stage.about_run else list(_elsewhere(config, name))
    found = find_made(stage, name, key, [*kept_places(final), *elsewhere]) if reason else None
    if found is not None and worker.outdated(found, folders) is None:
        return Decision(name, "reuse", EARLIER if is_kept(found) else f"made in {found}", key, found)
    for place in (final, *kept_places(final), *filter(_is_idle, elsewhere)):
        one = read_attempt(place)
        if one is not None and partial_folder(place).is_dir() and key_of(stage, name, one.made_from) == key:
            where = f" in {place.parent}" if place in elsewhere else ""
            return Decision(name, "resume", f"interrupted after {duration(one.seconds)}{where}", key, attempt=place)
    if begun:
        reason = f"{partial_folder(final)} of the interrupted attempt is missing"
    elif attempt is not None:
        changes = what_changed(name, attempt.made_from, now, stage)
        reason = f"{changes}; the interrupted attempt ({duration(attempt.seconds)}) is kept"
    return Decision(name, "run", reason or "", key)


def stages_anew(config: RunConfig, first: str | None, *, force: bool) -> list[str]:
    """The stages to run again: all of them by `force`, or those from `first` on.

    Raises:
        ConfigError: `first` is not listed.
    """
    listed = config.settings.stages
    if force or first is None:
        return list(listed) if force else []
    if first not in listed:
        raise ConfigError(
            f"--from: the run has no stage {first!r}.{nearest(first, listed)} Stages: {', '.join(listed)}"
        )
    return listed[listed.index(first) :]


def code_notes(config: RunConfig, names: Iterable[str]) -> list[str]:
    """Which of our source folders have changed since published artifacts were written, a line for each set of them."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        manifest, _ = artifact.examine(config.run_dir / name)
        if manifest is not None and (changed := artifact.changed_source(manifest)):
            groups.setdefault(changed, []).append(name)
    return [
        f"code changed since {', '.join(own)} ran: {', '.join(changed)} (--from {own[0]} runs from there again)"
        for changed, own in groups.items()
    ]


def _made_from(
    config: RunConfig,
    stage: type[Stage],
    name: str,
    sources: Mapping[str, list[Source]],
    pending: Mapping[str, str] | None = None,
) -> MadeFrom:
    records = input_records(config, stage, name, sources, pending)
    return MadeFrom(config.resolved[name], records, artifact.version_of(providers(name, stage.calls)))


def _elsewhere(config: RunConfig, name: str) -> Iterator[Path]:
    """Where other runs may have left the artifact of stage `name`, or an attempt at it: folders of `reuse_from`, and
    one level below."""
    own = (config.run_dir / name).absolute()
    for folder in map(user_path, config.settings.reuse_from):
        places = [folder / name, *(path.parent / name for path in sorted(folder.glob(f"*/{name}*")))]
        yield from (place for place in dict.fromkeys(places) if place.absolute() != own)


def _is_idle(place: Path) -> bool:
    """Whether nobody works on an attempt that another run has left: neither its command nor jobs that outlive it."""
    return lock_holder(place.parent) is None and not any(jobs_folder(place).glob(f"*/{SUBMISSION}"))
