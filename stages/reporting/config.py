"""Configs of the stages report and compare. Reading them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class VariantConfig:
    """One variant of a study."""

    group: str = ""
    """Its name without the seed of the whole pipeline."""
    parameters: dict[str, str] = field(default_factory=dict)
    """What tells it from the others, by dotted key."""
    artifacts: dict[str, list[str]] = field(default_factory=dict)
    """Its artifacts by the name of this stage's input, as paths below the run's folder."""
    problem: str = ""
    """Why it is not complete; empty where it is."""


@dataclass(frozen=True)
class CompareConfig:
    """What is compared; `orrery study` fills it in."""

    title: str = ""
    """Heading of the page."""
    description: str = ""
    """What the study finds out, in one line."""
    variants: dict[str, VariantConfig] = field(default_factory=dict)
    """By name."""


@dataclass(frozen=True)
class ReportConfig:
    """What the page is called."""

    title: str = ""
    """Heading of the page; empty takes the name of the run."""
