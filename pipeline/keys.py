"""Keys: what decides the result of a stage. Artifacts with the same key are the same, wherever they are."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from . import artifact
from .artifact import OUTSIDE, MadeFrom
from .config.load import dotted_keys
from .errors import StageError
from .stage import Stage

SHOWN_CHANGES = 4
"""Maximum changes listed in a reason."""


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


def what_changed(name: str, former: MadeFrom, now: MadeFrom, stage: type[Stage]) -> str:
    """What tells two keys of stage `name` apart, in words."""
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
