"""Sources of the inputs of each stage, and whether its artifact is up to date. Reads the disk, writes nothing."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.text import Text

from . import artifact
from .artifact import OUTSIDE, InputRecord, MadeFrom
from .config.load import RunConfig, dotted_keys
from .config.schema import nearest
from .entry_points import providers
from .errors import ConfigError, OrreryError, StageError
from .hub import find_artifact
from .jobs.job import SUBMISSION
from .kept import kept_places
from .lock import lock_holder
from .logging import duration
from .paths import user_path
from .run_folder import jobs_folder, partial_folder, read_attempt
from .stage import Input, Stage

Action = Literal["fresh", "reuse", "resume", "run"]

NOT_RUN = "not run yet"
SHOWN_CHANGES = 4
"""Maximum changes listed in a reason."""


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

    @property
    def would(self) -> str:
        """The action of a run, in a word for tables."""
        return {"fresh": "up to date", "resume": "continue"}.get(self.action, self.action)


def start_line(decision: Decision) -> Text:
    """The console line of a stage that starts: `pack: running`, `add: running (add.scale 1 -> 2)`."""
    verb = "continuing" if decision.action == "resume" else "running"
    reason = "" if decision.reason in ("", NOT_RUN) else f" ({decision.reason})"
    return Text(f"{decision.stage}: {verb}{reason}", style="dim")


@dataclass(frozen=True)
class Source:
    """Origin of an input: an earlier stage of this run, or an external folder."""

    folder: Path
    kind: str
    stage: str | None


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
            decisions[name] = Decision(name, "run", f"input from {waits[0]}", key_of(stages[name], name, now))
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


def check_world_model_is_used(
    config: RunConfig, stages: Mapping[str, type[Stage]], found: Mapping[str, Mapping[str, list[Source]]]
) -> None:
    """Refuse a `world_model` in whose place every stage reads one that the run makes.

    Args:
        found: sources by stage and input name.
    """
    readers = {
        name: found[name][input_name]
        for name in config.settings.stages
        for input_name, wanted in stages[name].inputs.items()
        if wanted.kind == "world_model"
    }
    makers = {source.stage for sources in readers.values() for source in sources if source.stage is not None}
    if config.settings.world_model and makers and not any(s.stage is None for many in readers.values() for s in many):
        raise ConfigError(
            f"world_model={config.settings.world_model} would not be used: {', '.join(readers)} would use the model of "
            f"stage {', '.join(sorted(makers))}. Remove that stage from `stages`, or remove world_model"
        )


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


def find_sources(config: RunConfig, stages: Mapping[str, type[Stage]], name: str) -> dict[str, list[Source]]:
    """Where each input of stage `name` comes from: given paths, else the latest stage before it that makes its kind,
    else what stages that this command does not list have left in the run folder.

    Raises:
        StageError: an input has no source, or a given path does not hold it.
    """
    order = config.settings.stages
    found: dict[str, list[Source]] = {}
    for input_name, wanted in stages[name].inputs.items():
        earlier = [
            Source(config.run_dir / other, wanted.kind, other)
            for other in order[: order.index(name)]
            if stages[other].output_kind == wanted.kind and not wanted.outside
        ]
        if (value := config.settings.inputs.get(input_name)) is not None:
            named = _several(value) if wanted.many else [value]
            note = f" (inputs.{input_name} is a list separated by {os.pathsep!r})" if len(named) > 1 else ""
            given = [_given(one, f"inputs.{input_name}", wanted.kind, note) for one in named]
            found[input_name] = [*earlier, *given] if wanted.many else given
        elif config.settings.world_model and wanted.kind == "world_model" and not earlier:
            found[input_name] = [_given(config.settings.world_model, "world_model", wanted.kind)]
        else:
            earlier = earlier or _published(config, stages, wanted)
            found[input_name] = earlier if wanted.many else earlier[-1:]
        if not found[input_name] and not wanted.optional:
            makers = [other for other, stage in stages.items() if stage.output_kind == wanted.kind]
            raise StageError(
                f"stage {name!r} needs an input {input_name!r} of kind {wanted.kind!r}; no stage before it produces "
                f"one. Add one of these stages before it: {', '.join(makers) or 'none known'}; or use an external "
                f"artifact: {_key_of(input_name, wanted.kind)}=PATH"
            )
    return found


def _published(config: RunConfig, stages: Mapping[str, type[Stage]], wanted: Input) -> list[Source]:
    """What an earlier command left in the run folder, the latest last, by stages that this command does not list."""
    if wanted.outside:
        return []
    others = [name for name, stage in stages.items() if stage.output_kind == wanted.kind]
    manifests = {
        name: manifest
        for name in others
        if name not in config.settings.stages
        and (config.run_dir / name).is_dir()
        and (manifest := artifact.read_manifest(config.run_dir / name)) is not None
    }
    latest_last = sorted(manifests, key=lambda name: manifests[name].created)
    return [Source(config.run_dir / name, wanted.kind, None) for name in latest_last]


def _key_of(input_name: str, kind: str) -> str:
    """The setting that gives an input from elsewhere."""
    return "world_model" if kind == "world_model" else f"inputs.{input_name}"


def _several(value: str) -> list[str]:
    """The folders and Hub ids of a list whose separator may also be part of a folder's name: the longest that exist."""
    words = value.split(os.pathsep)
    found = []
    while words:
        ends = range(len(words), 0, -1)
        end = next((n for n in ends if user_path(os.pathsep.join(words[:n])).is_dir()), 1)
        found.append(os.pathsep.join(words[:end]))
        del words[:end]
    return found


def _given(reference: str, key: str, kind: str, note: str = "") -> Source:
    try:
        return Source(find_artifact(reference, kind), kind, None)
    except OrreryError as error:
        raise type(error)(f"{key}: {error}{note}") from error


def input_records(
    config: RunConfig,
    stage: type[Stage],
    name: str,
    sources: Mapping[str, list[Source]],
    pending: Mapping[str, str] | None = None,
) -> dict[str, list[InputRecord]]:
    """Paths and digests of what a stage is made from; files outside the run stand under `OUTSIDE`.

    Args:
        pending: keys by stage that stand for the digests of artifacts that are still to be made.
    """
    keys = pending or {}
    records = {
        input_name: [
            InputRecord(str(source.folder), keys.get(source.stage or "") or artifact.digest_of(source.folder))
            for source in many
        ]
        for input_name, many in sources.items()
    }
    if outside := stage(config.stage_configs[name]).reads():
        records[OUTSIDE] = [InputRecord(str(path), artifact.stat_digest(path)) for path in outside]
    return records


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
        reason = _what_changed(name, manifest.made_from, now, stage)
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
        return Decision(name, "reuse", f"made in {found}", key, found)
    for place in (final, *kept_places(final), *filter(_is_idle, elsewhere)):
        one = read_attempt(place)
        if one is not None and partial_folder(place).is_dir() and key_of(stage, name, one.made_from) == key:
            where = f" in {place.parent}" if place in elsewhere else ""
            return Decision(name, "resume", f"interrupted after {duration(one.seconds)}{where}", key, attempt=place)
    if begun:
        reason = f"{partial_folder(final)} of the interrupted attempt is missing"
    elif attempt is not None:
        changes = _what_changed(name, attempt.made_from, now, stage)
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


def key_of(stage: type[Stage], name: str, made_from: MadeFrom) -> str:
    """Hash of everything that decides a stage's result: artifacts with the same key are the same, wherever they are."""
    # Without inputs that are not given, so that a stage can get a new optional one.
    digests = {input_name: [record.digest for record in many] for input_name, many in made_from.inputs.items() if many}
    return artifact.hash_json([name, stage.output_kind, hashed(made_from.config, stage), digests, made_from.version])


def find_made(stage: type[Stage], name: str, key: str, folders: Iterable[Path]) -> Path | None:
    """The first of these folders that holds the artifact with this key, and all of its files.

    Keys are computed from what the manifests record, so that artifacts of versions that hashed more are found, too.
    """
    for folder in folders:
        with contextlib.suppress(StageError):  # no folder, or damaged
            manifest = artifact.read_manifest(folder)
            if manifest is not None and key_of(stage, name, manifest.made_from) == key:
                artifact.verify_quick(folder, stage.output_kind)
                return folder
    return None


def hashed(config: Mapping[str, Any], stage: type[Stage]) -> dict[str, Any]:
    """The part of a stage's config that decides its result: everything except `Stage.not_hashed`.

    A config that an earlier version recorded is brought up to date: settings that it lacks have their defaults, and
    renamed ones their new names.
    """
    return artifact.without(_complete(config, stage.Config()), stage.not_hashed)


def _complete(recorded: Mapping[str, Any], defaults: Any) -> dict[str, Any]:
    config, plain = dict(recorded), json.loads(json.dumps(asdict(defaults)))
    for one in fields(defaults):
        former, value = one.metadata.get("renamed_from", ""), getattr(defaults, one.name)
        if one.name not in config:
            config[one.name] = config.pop(former) if former in config else plain[one.name]
        if is_dataclass(value) and isinstance(config[one.name], Mapping):
            config[one.name] = _complete(config[one.name], value)
    return config


def _what_changed(name: str, former: MadeFrom, now: MadeFrom, stage: type[Stage]) -> str:
    before, after = (dict(dotted_keys(hashed(one.config, stage))) for one in (former, now))
    changes = [
        f"{name}.{key} {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) or (key in before) != (key in after)
    ]
    if former.version != now.version:
        changes.append(f"orrery {former.version} -> {now.version}")
    for input_name in sorted(former.inputs.keys() | now.inputs.keys()):
        recorded = {one.path: one.digest for one in former.inputs.get(input_name, ())}
        present = {one.path: one.digest for one in now.inputs.get(input_name, ())}
        if list(recorded.values()) == list(present.values()):
            continue
        files = [path for path in {**recorded, **present} if recorded.get(path) != present.get(path)]
        changes += [f"{path} changed" for path in files] if input_name == OUTSIDE else [f"input {input_name} changed"]
    more = f" and {len(changes) - SHOWN_CHANGES} more" if len(changes) > SHOWN_CHANGES + 1 else ""
    shown = changes[:SHOWN_CHANGES] if more else changes
    return ", ".join(shown) + more or "the definition of the stage changed"
