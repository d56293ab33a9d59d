"""Weights on disk: safetensors beside a JSON file that says what to build. Nothing is ever unpickled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from . import artifact
from .errors import CheckpointError
from .reading import check_file
from .saved_config import Upgrade, as_it_is, written_by

M = TypeVar("M", bound=torch.nn.Module)


PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
"""Endings of files that are pickles, or hold some."""


def save_weights(folder: Path, name: str, state: Mapping[str, torch.Tensor], config: Any) -> None:
    """Write `<name>.safetensors` and `<name>.json` (the config dataclass) into `folder`, which is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{name}.safetensors"
    weights.touch()
    permissions = weights.stat().st_mode  # the umask's; those of the temporary file that safetensors renames are 0600
    save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, weights)
    weights.chmod(permissions)
    artifact.write_json(folder / f"{name}.json", dataclasses.asdict(config))  # last: with it the weights are complete


def load_module(folder: Path, name: str, make: Callable[[], M], upgrade: Upgrade = as_it_is) -> M:
    """What `make` builds, filled as by `load_weights`, after `upgrade` has given tensors of an older version their
    present names. It is built without memory first and compared with the file, so that sizes which a damaged config
    declares are never allocated.

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


def load_weights(folder: Path, name: str, module: torch.nn.Module) -> None:
    """Fill `module` from `<name>.safetensors`; every key and shape has to match.

    Raises:
        CheckpointError: names each missing, unexpected and misshapen tensor, or the damaged file.
    """
    state = load_tensors(folder, name)
    _check_fits(folder, name, state, module)
    module.load_state_dict(state)


def _check_fits(folder: Path, name: str, state: Mapping[str, torch.Tensor], module: torch.nn.Module) -> None:
    path = folder / f"{name}.safetensors"
    problem = f"{path} does not fit {type(module).__name__}. {written_by(folder)}"
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
