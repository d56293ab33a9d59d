"""Which policy a user means, from the words of a command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...datasets.tasks import expand_names
from ...pipeline.errors import ConfigError
from ..policy.policy import Policy


def read_policy(reference: str, wishes: Mapping[str, str]) -> Policy:
    """`Policy.from_pretrained` with `task`, `algorithm` and `seed` as they come from a command line.

    Raises:
        ConfigError: the seed is no number.
        OrreryError: as `Policy.from_pretrained`.
    """
    seed = wishes.get("seed")
    if seed is not None and not seed.isdecimal():
        raise ConfigError(f"seed: expected a number, found {seed!r}")
    task = wishes.get("task")
    return Policy.from_pretrained(
        reference,
        task=None if task is None else expand_names([task])[0],
        algorithm=wishes.get("algorithm"),
        seed=None if seed is None else int(seed),
    )


def made_by(policy: Policy) -> dict[str, Any]:
    """Algorithm and seed, where the policy says so."""
    holder = policy if hasattr(policy, "trained_by") else getattr(policy, "config", None)
    made: Mapping[str, Any] = getattr(holder, "trained_by", {})
    return {"algorithm": made.get("algorithm", type(policy).__name__), "seed": int(made.get("seed", 0))}
