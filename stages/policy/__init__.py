"""What every algorithm ends in: a policy, its index, and how both are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .policy import Policy as Policy


def __getattr__(name: str) -> Any:
    """`Policy`, on first use: it needs torch, which the index does without."""
    if name == "Policy":
        from .policy import Policy

        return Policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
