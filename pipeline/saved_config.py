"""The config beside saved weights. Reading it needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar

from . import artifact
from .errors import CheckpointError
from .reading import decode, read_json

T = TypeVar("T")
Upgrade = Callable[[dict[str, Any]], dict[str, Any]]


def as_it_is(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values unchanged: the `upgrade` of configs that never changed."""
    return values


def read_config(folder: Path, name: str, config_type: type[T], upgrade: Upgrade = as_it_is) -> T:
    """The config dataclass stored by `save_weights`.

    A key that the file lacks takes its default, so a key that is added must have a default under which older files mean
    what they meant. Whatever else changes goes into `upgrade`: values as an older version stored them -> as this one
    does.

    Raises:
        CheckpointError: the file is missing or damaged, or has other keys or values than this version knows.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in folder.glob("*"))) if folder.is_dir() else "no such folder"
        raise CheckpointError(f"{folder}: expected {name}.json and {name}.safetensors, found {found or 'nothing'}")
    values = read_json(path, CheckpointError)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected the keys and values of {config_type.__name__}, found {values!r:.60}")
    values = upgrade(values)
    fields = dataclasses.fields(config_type)  # type: ignore[arg-type]
    required = {f.name for f in fields if f.default is MISSING and f.default_factory is MISSING}
    changed = [f"unknown key {key}" for key in sorted(set(values) - {field.name for field in fields})]
    changed += [f"missing key {key}" for key in sorted(required - set(values))]
    if changed:
        raise CheckpointError(f"{path}: {', '.join(changed)}. {written_by(folder)}")
    try:
        return decode(config_type, values)
    except (TypeError, ValueError) as error:  # a ConfigError is a ValueError
        raise CheckpointError(f"{path} does not describe a valid object: {error}. {written_by(folder)}") from error


def written_by(folder: Path) -> str:
    """Which version wrote the files, as far as the manifest here or of the artifact above says."""
    this = artifact.package_versions().get("orrery", "?")
    for place in (folder, *list(folder.parents)[:3]):
        if (place / artifact.MANIFEST).is_file():
            manifest = artifact.read_manifest(place)
            written = manifest.versions.get("orrery", "?") if manifest else "?"
            return f"It was written by orrery {written}; this is {this}"
    return f"It was written by another version of orrery or another program; this is orrery {this}"
