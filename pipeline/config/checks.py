"""Ranges and choices of settings, checked where a config dataclass is built. NaN lies in no range."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ..errors import ConfigError

MAX_LAYERS = 1000
"""Of a network."""


def check_counts(config: Any, *names: str) -> None:
    """Raise a ConfigError for the first of these fields that is below 1."""
    for name in names:
        if not getattr(config, name) >= 1:
            raise ConfigError(f"{name} must be at least 1, found {getattr(config, name)}")


def check_layers(config: Any, *names: str) -> None:
    """The same for those above MAX_LAYERS: a damaged file declares them, and they would take for ever to build."""
    for name in names:
        if getattr(config, name) > MAX_LAYERS:
            raise ConfigError(f"{name} must be at most {MAX_LAYERS:,}, found {getattr(config, name):,}")


def check_positive(config: Any, *names: str) -> None:
    """The same for numbers that are not finite and above 0."""
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ConfigError(f"{name} must be positive, found {getattr(config, name)}")


def check_not_negative(config: Any, *names: str) -> None:
    """The same for those that are not finite, or below 0."""
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise ConfigError(f"{name} must not be negative, found {getattr(config, name)}")


def check_shares(config: Any, *names: str) -> None:
    """The same for those outside [0, 1]."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"{name} must lie in [0, 1], found {getattr(config, name)}")


def check_choices(config: Any, **known: Iterable[str]) -> None:
    """Raise a ConfigError for the first of these fields that has none of its known values."""
    for name, values in known.items():
        if getattr(config, name) not in values:
            raise ConfigError(f"{name}: expected {', '.join(values)}, found {getattr(config, name)!r}")
