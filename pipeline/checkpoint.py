"""Weights on disk: safetensors beside a config.json that says what to build. Nothing is ever unpickled."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .errors import CheckpointError

T = TypeVar("T")


def save_weights(folder: Path, name: str, state: Mapping[str, torch.Tensor], config: Any) -> None:
    """Write `<name>.safetensors` and `<name>.json` (the config dataclass) into `folder`, which is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(dataclasses.asdict(config), indent=1))


def read_config(folder: Path, name: str, config_type: type[T]) -> T:
    """The config dataclass stored by `save_weights`.

    Raises:
        CheckpointError: the file is missing, or has keys that this version does not know.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in folder.glob("*"))) if folder.is_dir() else "no such folder"
        raise CheckpointError(f"{folder}: expected {name}.json and {name}.safetensors, found {found}")
    values = json.loads(path.read_text())
    known = {field.name for field in dataclasses.fields(config_type)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise CheckpointError(f"{path}: unknown keys {unknown}; it was written by another version of orrery")
    return config_type(**values)


def load_weights(folder: Path, name: str, module: torch.nn.Module) -> None:
    """Fill `module` from `<name>.safetensors`; every key and shape has to match.

    Raises:
        CheckpointError: names each missing, unexpected and misshapen tensor, or the damaged file.
    """
    path = folder / f"{name}.safetensors"
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error}); restore the file or rerun") from error
    check_same_tensors(state, module.state_dict(), f"{path} does not fit {type(module).__name__}")
    module.load_state_dict(state)


def check_same_tensors(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], problem: str) -> None:
    """Compare names, shapes and types; `problem` heads the message.

    Raises:
        CheckpointError: names each missing and unexpected tensor, and each of another shape or type.
    """

    def spell(tensor: torch.Tensor, other: torch.Tensor) -> str:
        kind = "" if tensor.dtype == other.dtype else f" {str(tensor.dtype).removeprefix('torch.')}"
        return f"{list(tensor.shape)}{kind}"

    differences = [f"missing {key} {list(value.shape)}" for key, value in expected.items() if key not in found]
    differences += [f"unexpected {key} {list(value.shape)}" for key, value in found.items() if key not in expected]
    differences += [
        f"{key}: expected {spell(expected[key], value)}, found {spell(value, expected[key])}"
        for key, value in found.items()
        if key in expected and (expected[key].shape, expected[key].dtype) != (value.shape, value.dtype)
    ]
    if differences:
        shown = "\n  ".join(differences[:20])
        more = f"\n  and {len(differences) - 20} more" if len(differences) > 20 else ""
        raise CheckpointError(f"{problem}:\n  {shown}{more}")
