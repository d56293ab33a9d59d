"""Weights on disk: safetensors beside a config.json that says what to build. Nothing is ever unpickled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from . import artifact
from .errors import CheckpointError
from .reading import check_file, decode, read_json

T = TypeVar("T")
M = TypeVar("M", bound=torch.nn.Module)

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
"""Endings of files that are pickles, or hold some."""


def _as_it_is(values: dict[str, Any]) -> dict[str, Any]:
    return values


def save_weights(folder: Path, name: str, state: Mapping[str, torch.Tensor], config: Any) -> None:
    """Write `<name>.safetensors` and `<name>.json` (the config dataclass) into `folder`, which is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{name}.safetensors"
    weights.touch()
    permissions = weights.stat().st_mode  # the umask's; those of the temporary file that safetensors renames are 0600
    save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, weights)
    weights.chmod(permissions)
    artifact.write_json(folder / f"{name}.json", dataclasses.asdict(config))  # last: with it the weights are complete


def read_config(folder: Path, name: str, config_type: type[T], upgrade: Upgrade = _as_it_is) -> T:
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
        raise CheckpointError(f"{path}: {', '.join(changed)}. {_written_by(folder)}")
    try:
        return decode(config_type, values)
    except (TypeError, ValueError) as error:  # a ConfigError is a ValueError
        raise CheckpointError(f"{path} does not describe a valid object: {error}. {_written_by(folder)}") from error


def load_module(folder: Path, name: str, make: Callable[[], M], upgrade: Upgrade = _as_it_is) -> M:
    """What `make` builds, filled as by `load_weights`. It is built without memory first and compared with the file, so
    that sizes which a damaged config declares are never allocated.

    Raises:
        CheckpointError: as `load_weights`.
    """
    state = upgrade(load_tensors(folder, name))
    with torch.device("meta"):
        expected = make()
    _check_fits(folder, name, state, expected)
    module = make()
    module.load_state_dict(state)
    return module


def load_weights(folder: Path, name: str, module: torch.nn.Module, upgrade: Upgrade = _as_it_is) -> None:
    """Fill `module` from `<name>.safetensors`; every key and shape has to match, after `upgrade` has given tensors of
    an older version their present names.

    Raises:
        CheckpointError: names each missing, unexpected and misshapen tensor, or the damaged file.
    """
    state = upgrade(load_tensors(folder, name))
    _check_fits(folder, name, state, module)
    module.load_state_dict(state)


def _check_fits(folder: Path, name: str, state: Mapping[str, torch.Tensor], module: torch.nn.Module) -> None:
    path = folder / f"{name}.safetensors"
    problem = f"{path} does not fit {type(module).__name__}. {_written_by(folder)}"
    check_same_tensors(state, module.state_dict(), problem)


def load_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """What `<name>.safetensors` holds, on the CPU.

    Raises:
        CheckpointError: the file is missing, or no complete safetensors file.
    """
    path = folder / f"{name}.safetensors"
    try:
        if path.exists():
            check_file(path, CheckpointError)
        path.open("rb").close()  # safetensors says of a file that it may not read that there is none
        return load_file(path)
    except FileNotFoundError:
        pickles = [file.name for file in sorted(folder.glob("*")) if file.suffix in PICKLES]
        hint = f"; {', '.join(pickles)} may run code when opened and is not read" if pickles else ""
        raise CheckpointError(f"{path} is missing{hint}; restore the file or rerun") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error}); restore the file or rerun") from error


def _written_by(folder: Path) -> str:
    """Which version wrote the files, as far as the manifest here or of the artifact above says."""
    this = artifact.package_versions().get("orrery", "?")
    for place in (folder, *list(folder.parents)[:3]):
        if (place / artifact.MANIFEST).is_file():
            manifest = artifact.read_manifest(place)
            written = manifest.versions.get("orrery", "?") if manifest else "?"
            return f"It was written by orrery {written}; this is {this}"
    return f"It was written by another version of orrery or another program; this is orrery {this}"


def check_same_tensors(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], problem: str) -> None:
    """Compare names, shapes and types; `problem` heads the message.

    Raises:
        CheckpointError: names each missing and unexpected tensor, and each of another shape or type.
    """

    def type_name(tensor: torch.Tensor, other: torch.Tensor) -> str:
        kind = "" if tensor.dtype == other.dtype else f" {str(tensor.dtype).removeprefix('torch.')}"
        return f"{list(tensor.shape)}{kind}"

    differences = [f"missing {key} {list(value.shape)}" for key, value in expected.items() if key not in found]
    differences += [f"unexpected {key} {list(value.shape)}" for key, value in found.items() if key not in expected]
    differences += [
        f"{key}: expected {type_name(expected[key], value)}, found {type_name(value, expected[key])}"
        for key, value in found.items()
        if key in expected and (expected[key].shape, expected[key].dtype) != (value.shape, value.dtype)
    ]
    if differences:
        shown = "\n  ".join(differences[:20])
        more = f"\n  and {len(differences) - 20} more" if len(differences) > 20 else ""
        raise CheckpointError(f"{problem}:\n  {shown}{more}")
