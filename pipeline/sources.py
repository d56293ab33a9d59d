"""Where the inputs of each stage come from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import artifact
from .artifact import OUTSIDE, InputRecord
from .config.load import RunConfig
from .errors import ConfigError, OrreryError, StageError
from .hub import find_artifact
from .paths import user_path
from .stage import Input, Stage


@dataclass(frozen=True)
class Source:
    """Origin of an input: an earlier stage of this run, or an external folder."""

    folder: Path
    kind: str
    stage: str | None


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
