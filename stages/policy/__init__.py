"""Policies, their index, and loading them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .policy import Policy as Policy


def __getattr__(name: str) -> Any:
    """Import `Policy` on first use: it needs torch, the index does not."""
    if name == "Policy":
        from .policy import Policy

        return Policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
