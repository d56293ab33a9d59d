"""Ranges of settings, checked where a config dataclass is built. NaN lies in none of them."""

from __future__ import annotations

import math
from typing import Any

from .errors import ConfigError

ACCELERATORS = ("cpu", "cuda", "auto")
"""Of everything that is no training by Lightning, which says gpu."""


def check_positive(config: Any, *names: str) -> None:
    """Raise a ConfigError for the first of these fields that is not finite and above 0."""
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ConfigError(f"{name} must be positive, found {getattr(config, name)}")


def check_not_negative(config: Any, *names: str) -> None:
    """The same for 0 and above."""
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise ConfigError(f"{name} must not be negative, found {getattr(config, name)}")


def check_accelerator(config: Any) -> None:
    """Raise a ConfigError unless its `accelerator` is cpu, cuda or auto."""
    if config.accelerator not in ACCELERATORS:
        raise ConfigError(f"accelerator: expected {', '.join(ACCELERATORS)}, found {config.accelerator!r}")


def check_shares(config: Any, *names: str) -> None:
    """The same for [0, 1]."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"{name} must lie in [0, 1], found {getattr(config, name)}")
