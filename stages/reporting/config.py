"""Configs of the stages report and compare. Reading them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class VariantConfig:
    """One variant of a study."""

    group: str = ""
    """Name of the variant without seeds."""
    parameters: dict[str, str] = field(default_factory=dict)
    """Values of the keys that the study varies."""
    artifacts: dict[str, list[str]] = field(default_factory=dict)
    """Artifacts by input name of this stage, as paths relative to the run folder."""
    problem: str = ""
    """Why the variant is incomplete; empty if it is complete."""


@dataclass(frozen=True)
class CompareConfig:
    """The compared variants; set by `orrery study`."""

    title: str = ""
    """Heading of the page."""
    description: str = ""
    """What the study compares, in one line."""
    variants: dict[str, VariantConfig] = field(default_factory=dict)
    """Variants by name; set by `orrery study`."""


@dataclass(frozen=True)
class ReportConfig:
    """Settings of the report."""

    title: str = ""
    """Heading of the page; empty: the name of the run."""
    videos: bool = False
    """Show a video of each task: the first evaluation episode of the best algorithm. Needs imageio-ffmpeg
    (`pip install 'orrery[video]'`); dm_control and Meta-World also need OpenGL."""
