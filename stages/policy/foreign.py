"""Policies made elsewhere: programs in files, and functions of Python modules.

A foreign policy takes the environment's own observations and gives its own actions, as an exported policy does: float32
[B, *shape] in the environment's units; for discrete actions their numbers, or one value per choice: the largest counts.

Dimension letters: B batch, O flat observation, A action components.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...datasets.schema import TaskSpec
from ...pipeline.errors import ConfigError, TaskError
from ...pipeline.paths import user_path
from .interface import Interface
from .policy import Policy, load_policy
from .programs import LOADERS, Program, load_program

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_foreign(reference: str | Path) -> bool:
    """Whether `reference` names a file, or `module:function`, rather than a policy of this project."""
    path = user_path(reference)
    named = path.suffix in LOADERS or path.is_file()
    return not path.is_dir() and (named or bool(_FUNCTION.fullmatch(str(reference))))


def load_any_policy(reference: str | Path, spec: TaskSpec) -> Policy:
    """The policy in a folder of this project, or one made elsewhere.

    Raises:
        OrreryError: as `load_foreign` and `load_policy`.
    """
    foreign: Any = load_foreign(reference, spec) if is_foreign(reference) else None  # a Policy but for from_pretrained
    return load_policy(reference) if foreign is None else foreign


def load_foreign(reference: str | Path, spec: TaskSpec) -> ForeignPolicy:
    """Load a program, or import a function, and let it act once.

    Args:
        reference: a file of ONNX (.onnx), torch.export (.pt2) or TorchScript (.pt, .pth, .ts), or `module:function`,
            where the module is importable or in the working directory.
        spec: the task to act in.
    Raises:
        CheckpointError: the file is missing, damaged, or would execute code.
        ConfigError: the suffix is unknown, a package is missing, or there is no such function.
        TaskError: it does not act on the task's observations, or gives other actions.
    """
    path = user_path(reference)
    is_function = not path.exists() and _FUNCTION.fullmatch(str(reference))
    program = _import(str(reference)) if is_function else load_program(path)
    return ForeignPolicy(str(reference), program, spec)


def _import(reference: str) -> Program:
    name, _, function = reference.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(name), function, None)
    except ImportError as error:
        raise ConfigError(f"{reference}: module {name} cannot be imported: {error}") from error
    finally:
        if added:
            with contextlib.suppress(ValueError):
                sys.path.remove(here)
    if not callable(found):
        raise ConfigError(f"{reference}: module {name} has no function {function}")
    return found


class ForeignPolicy:
    """A program as a Policy. It is given one observation at a time where it takes no batches."""

    def __init__(self, name: str, program: Program, spec: TaskSpec) -> None:
        """Raises:
        TaskError: it does not act on the task's observations, or gives other actions.
        """
        self.task, self._name, self._program = spec, name, program
        self._interface = Interface.of(spec)
        self._middle_A, self._half_A = self._interface.action_scale
        self._batched = True
        # Of a state number, the first one.
        first_BO = np.eye(spec.observation_dim, dtype=np.float32)[[0, 0]]
        example_BO = first_BO if self._interface.index_start is not None else 0 * first_BO
        try:
            self._actions(example_BO)
        except Exception as error:  # a program raises what it likes
            self._batched = False
            try:
                self._actions(example_BO)
            except Exception as again:
                raise self._refused(again if isinstance(again, TaskError) else error) from error

    def act(self, observation: torch.Tensor) -> torch.Tensor:
        """[B, O] float32, environment units -> [B, A] in [-1, 1], or one-hot for discrete actions."""
        return torch.from_numpy(self._actions(observation.cpu().numpy()))

    def to(self, _device: torch.device | str) -> ForeignPolicy:
        """Programs run on the CPU."""
        return self

    def predict(self, observation: Any) -> Any:
        """See `Predicts.predict`."""
        flat_BO, many = self._interface.flat(observation)
        actions = self._interface.to_environment(self._actions(flat_BO))
        return actions if many else actions[0]

    def _actions(self, flat_BO: np.ndarray) -> np.ndarray:
        raw = self._interface.raw(flat_BO)
        parts = [raw] if self._batched else [raw[index : index + 1] for index in range(len(raw))]
        found = np.concatenate([np.asarray(self._program(part)) for part in parts])
        return self._own_units(found, len(flat_BO))

    def _own_units(self, found: np.ndarray, batch: int) -> np.ndarray:
        spec, interface = self.task, self._interface
        if spec.action_kind == "discrete":
            if found.shape == (batch, spec.action_dim) and found.dtype.kind == "f":
                number = found.argmax(1)
            elif found.shape in ((batch,), (batch, 1)) and found.dtype.kind in "iu":
                number = found.reshape(batch) - interface.action_start
            else:
                raise TaskError(f"it gives {found.dtype} {list(found.shape)}")
            if number.min() < 0 or number.max() >= spec.action_dim:
                raise TaskError(f"it chooses {number.min() + interface.action_start} to {number.max()}")
            return np.eye(spec.action_dim, dtype=np.float32)[number]
        if found.shape != (batch, *interface.action_shape) or found.dtype.kind != "f":
            raise TaskError(f"it gives {found.dtype} {list(found.shape)}")
        scaled = (found.reshape(batch, -1) - self._middle_A) / self._half_A
        return scaled.clip(-1, 1).astype(np.float32)

    def _refused(self, error: Exception) -> TaskError:
        described = self._interface.describe()
        observation, action = described["observation"], described["action"]
        # TorchScript prints its traceback before what was wrong.
        said = str(error) if isinstance(error, TaskError) else f"{type(error).__name__}: {error}"
        said = said[max(said.rfind("RuntimeError: "), 0) :]
        return TaskError(
            f"{self._name} is no policy for {self.task.name}, which has observations {observation['dtype']} "
            f"{observation['shape']} and actions {action['dtype']} {action['shape']}: {' '.join(said.split()):.300}"
        )
