"""Policies: the common result of every algorithm, and loading them.

evaluate, collect and report use only this interface and do not depend on the algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import nn

from ...datasets.schema import TaskSpec
from ...pipeline.artifact import MANIFEST, verify, verify_listed
from ...pipeline.checkpoint import load_module, save_weights
from ...pipeline.entry_points import load, names
from ...pipeline.errors import CheckpointError
from ...pipeline.hub import find_artifact
from ...pipeline.paths import user_path
from ...pipeline.reading import read_json, reading
from ...pipeline.saved_config import read_config
from .interface import Interface
from .policy_index import POLICIES_FILE, PolicyIndex


class Policy(Protocol):
    """Acts on raw environment observations of one task. Deterministic, and stateless unless it is a StatefulPolicy."""

    task: TaskSpec

    def act(self, observation: torch.Tensor) -> torch.Tensor:
        """[B, O] float32, environment units -> [B, A] in [-1, 1], or one-hot for discrete actions."""
        ...

    def predict(self, observation: Any) -> Any:
        """See `Predicts.predict`."""
        ...

    @staticmethod
    def from_pretrained(
        reference: str | Path, *, task: str | None = None, algorithm: str | None = None, seed: int | None = None
    ) -> Policy:
        """Load the policy named by `reference` on the CPU, and verify every file.

        Args:
            reference: one policy's folder (RUN/extract/svg/dmc.walker-run/seed_0), a policies artifact (RUN/extract), a
                run folder that holds one, or an id of the Hugging Face Hub: user/name, user/name@revision.
            task, algorithm: which, where there are several.
            seed: which; None takes the lowest, so that no score has a part in the choice.
        Raises:
            OrreryError: there is no such policy, it cannot be downloaded, it is of another kind, or it is damaged.
        """
        folder = find_artifact(reference, "policies")
        alone = (folder / "policy.json").is_file()
        policy = folder if alone else folder / _choose(folder, task, algorithm, seed)
        # The artifact that it is part of vouches for it, also where the policy's own folder was named.
        artifact = next((one for one in (folder, *folder.parents[:3]) if (one / MANIFEST).is_file()), folder)
        verify(artifact, "policies")
        inside = policy.relative_to(artifact)
        verify_listed(
            artifact, [POLICIES_FILE, *((inside / name).as_posix() for name in ("policy.json", "policy.safetensors"))]
        )
        return load_policy(policy)


class Predicts:
    """Adds `predict`, which takes and returns the environment's own observations and actions."""

    task: TaskSpec

    @cached_property
    def _interface(self) -> Interface:
        return Interface.of(self.task)

    def predict(self, observation: Any) -> Any:
        """Return actions for observations in the form of the policy's own environment.

        Deterministic. A policy with a memory acts as at the start of an episode.

        Args:
            observation: one, or a batch along a first axis; arrays, tensors or lists, and mappings of them where the
                environment's observations are.
        Returns:
            The action: float32 [*shape] within the environment's bounds, or the number of a choice; a batch of them,
            [B, *shape], for a batch.
        Raises:
            TaskError: the observation is of another shape, holds no numbers, or not finite ones; or the environment
                whose spaces are needed cannot be built.
        """
        flat_BO, many = self._interface.flat(observation)
        act: Any = self
        with torch.inference_mode():
            action_BA = act.act(torch.from_numpy(flat_BO).to(_device_of(self))).cpu().numpy()
        actions = self._interface.to_environment(action_BA)
        return actions if many else actions[0]


def _device_of(policy: Any) -> torch.device:
    return next((tensor.device for tensor in policy.state_dict().values()), torch.device("cpu"))


class StoredPolicy(Predicts, nn.Module):
    """A policy stored as tensors in policy.safetensors and a config in policy.json. Subclasses define `Config`, the
    modules built from it, and `act`."""

    Config: ClassVar[type]
    """Has at least kind (as in _KINDS), task (a TaskSpec) and trained_by."""
    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.task = TaskSpec.from_dict(config.task)

    def save(self, folder: Path) -> None:
        """Write policy.safetensors and policy.json."""
        save_weights(folder, "policy", self.state_dict(), self.config)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote. Raises CheckpointError if it does not fit."""
        folder = user_path(folder)
        with reading(folder / "policy.json", CheckpointError):
            config: Any = read_config(folder, "policy", cls.Config, cls.upgrade_config)
            policy = load_module(folder, "policy", lambda: cls(config), cls.upgrade_weights)
        return policy.eval().requires_grad_(False)

    @staticmethod
    def upgrade_config(values: dict[str, Any]) -> dict[str, Any]:
        """Convert a policy.json of an older version."""
        return values

    @staticmethod
    def upgrade_weights(tensors: dict[str, Any]) -> dict[str, Any]:
        """Convert a policy.safetensors of an older version."""
        return tensors


class StatefulPolicy(Policy, Protocol):
    """Keeps a memory within an episode, such as its last plan. The caller stores the memories, so the policy itself
    never changes; without them, every step is treated as the first of an episode."""

    def begin(self, episode: int) -> Any:
        """Return the memory before the first step of an episode. The episode's number, from 0 within one call of
        `play_episodes`, seeds a policy that uses random numbers."""
        ...

    def act(self, observation: torch.Tensor, memory: Sequence[Any] | None = None) -> torch.Tensor:
        """As `Policy.act`; also updates the memory of each row's episode."""
        ...


def load_policy(folder: str | Path) -> Policy:
    """Load the policy in `folder`.

    Raises:
        CheckpointError: no policy there, of a kind unknown to this version, or weights that do not fit.
    """
    folder = user_path(folder)
    path = folder / "policy.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: expected a policy folder with policy.json, which is missing")
    with reading(path, CheckpointError):
        kind = read_json(path, CheckpointError).get("kind")
        if kind not in names("policies"):
            raise CheckpointError(
                f"{path}: no installed package has policies of kind {kind!r}; known: {', '.join(names('policies'))}"
            )
        policy: Policy = load("policies", kind, Predicts).load(folder)
    return policy


def _choose(artifact: Path, task: str | None, algorithm: str | None, seed: int | None) -> str:
    """Return the folder of the selected policy in a policies artifact."""
    entries = PolicyIndex.read(artifact).entries
    wanted = {"task": task, "algorithm": algorithm, "seed": seed}
    for name, value in wanted.items():
        known = sorted({entry[name] for entry in entries})
        if value is not None:
            entries = [entry for entry in entries if entry[name] == value]
        elif name != "seed" and len(known) > 1:
            raise CheckpointError(
                f"{artifact} has policies of several {name}s; set {name}= to one of: {', '.join(known)}"
            )
        if not entries:
            raise CheckpointError(
                f"{artifact} has no policy with {name}={value!r}, only: {', '.join(map(str, known)) or 'none at all'}"
            )
    return min(entries, key=lambda entry: entry["seed"])["path"]
