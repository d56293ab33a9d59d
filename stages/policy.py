"""What every algorithm ends in: a Policy in a folder, and the one way to load it.

evaluate, collect and report use nothing else, so they never ask which algorithm made a policy.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch

from ..datasets.schema import TaskSpec
from ..pipeline.errors import CheckpointError

_KINDS = {
    "latent": ("extraction.policy", "LatentPolicy"),
    "state": ("awm.policy", "StatePolicy"),
    "kernel": ("kernel_planning.policy", "KernelPolicy"),
    "mrq": ("mrq_learning.policy", "MrqPolicy"),
    "planner": ("world_model.planner", "Planner"),
}
"""Policy class by the `kind` in policy.json: module under orrery.stages, class."""


class Policy(Protocol):
    """Acts on raw environment observations of one task; deterministic, and stateless unless it is a StatefulPolicy."""

    task: TaskSpec

    def act(self, observation: torch.Tensor) -> torch.Tensor:
        """[B, O] float32, environment units -> [B, A] in [-1, 1], or one-hot where actions are discrete."""
        ...


class StatefulPolicy(Policy, Protocol):
    """Remembers something within an episode, such as its last plan. Whoever plays the episodes keeps the memories, so
    that the policy itself never changes; without them every decision is taken as the first of an episode."""

    def begin(self, episode: int) -> Any:
        """What it remembers before the first decision of an episode. The episode's number, from 0 within one call of
        `play_episodes`, decides the random numbers of a policy that has any."""
        ...

    def act(self, observation: torch.Tensor, memory: Sequence[Any] | None = None) -> torch.Tensor:
        """As `Policy.act`; brings the memory of each row's episode up to date."""
        ...


def load_policy(folder: str | Path) -> Policy:
    """The policy that a stage wrote to `folder`.

    Raises:
        CheckpointError: no policy there, of a kind unknown to this version, or weights that do not fit.
    """
    folder = Path(folder)
    path = folder / "policy.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: expected a policy folder with policy.json, which is not there")
    kind = json.loads(path.read_text()).get("kind")
    if kind not in _KINDS:
        raise CheckpointError(f"{path}: policy kind {kind!r}, this version knows: {', '.join(_KINDS)}")
    module, name = _KINDS[kind]
    return getattr(import_module(f".{module}", __package__), name).load(folder)
