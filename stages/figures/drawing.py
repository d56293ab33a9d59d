"""Style of all figures, and their conversion to inline SVG.

Lengths are in CSS pixels at natural size (matplotlib's points). Text stays text, black text takes the colour of the
page, and lines are mid grey, so that a figure is readable on light, dark and paper.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

GREY = "#858585"
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Okabe and Ito's colours, distinguishable with colour blindness."""
MARKERS = ("o", "s", "^", "D", "v", "P")
BASELINE_STYLES = {"behaviour": ("#6b6b6b", "d"), "random": ("#a3a3a3", "X")}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "text.color": "black",
    "axes.labelcolor": "black",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.7,
    "axes.formatter.limits": (-3, 4),
    "text.parse_math": False,  # dollar signs in task names are literal
}

NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
"""Metadata that matplotlib leaves out."""


def score_limits(estimates: Any) -> tuple[float, float]:
    """Return the limits of a score axis: they include 0, 1, every score, and intervals up to 0.5 beyond these.

    The interval of two seeds can be ten times as wide as the range of scores and would make them indistinguishable.

    Args:
        estimates: [N, 3], score, low and high; low and high are None or NaN without an interval.
    """
    values = np.asarray(estimates, np.float64)
    low, high = min(0.0, np.nanmin(values[:, 0])), max(1.0, np.nanmax(values[:, 0]))
    return max(min(low, np.nanmin(values)), low - 0.5), min(max(high, np.nanmax(values)), high + 0.5)


def algorithm_styles(algorithms: Sequence[str]) -> dict[str, tuple[str, str]]:
    """(colour, marker) by algorithm, the same in every figure of a report; baselines are grey."""
    learned = [name for name in algorithms if name not in BASELINE_STYLES]
    styles = {
        name: (PALETTE[i % len(PALETTE)], MARKERS[(i + i // len(PALETTE)) % len(MARKERS)])
        for i, name in enumerate(learned)
    }
    return styles | BASELINE_STYLES


@contextlib.contextmanager
def drawing_style() -> Iterator[None]:
    """Apply this module's matplotlib settings while figures are drawn and written."""
    with matplotlib.rc_context(STYLE):
        yield


def new_panel(
    width: int, height: int, *, left: int = 46, right: int = 16, top: int = 10, bottom: int = 40
) -> tuple[Figure, Axes]:
    """Return a figure with one plot and fixed margins, so that panels side by side align."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    return figure, figure.add_axes(box)


def new_row(
    count: int,
    width: int,
    height: int,
    *,
    left: int = 46,
    gap: int = 14,
    right: int = 16,
    top: int = 10,
    bottom: int = 40,
) -> tuple[Figure, list[Axes]]:
    """Return a figure of `count` plots side by side, each `width` wide, with shared axes."""
    total = left + count * width + (count - 1) * gap + right
    figure = Figure(figsize=(total / 72, height / 72), dpi=72)
    panels: list[Axes] = []
    for number in range(count):
        box = (
            (left + number * (width + gap)) / total,
            bottom / height,
            width / total,
            (height - top - bottom) / height,
        )
        first = panels[0] if panels else None
        panels.append(figure.add_axes(box, sharex=first, sharey=first))
        panels[-1].tick_params(labelleft=number == 0)
    return figure, panels


def save_svg(figure: Figure, path: Path) -> None:
    """Write the figure as a file of its own, the same bytes for the same figure: without date and random ids."""
    with matplotlib.rc_context({"svg.hashsalt": path.name}):
        FigureCanvasSVG(figure).print_svg(path, metadata=NO_METADATA)


def to_svg(figure: Figure, description: str) -> Markup:
    """Return the figure as an inline <svg> with `description` as its text alternative."""
    buffer = io.StringIO()
    salt = hashlib.sha256(description.encode()).hexdigest()
    # Ids are hashes over content and salt: a salt per figure keeps them apart on one page, and reproducible.
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata=NO_METADATA)
    text = buffer.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', body))
    kept = {one or other for one, other in used}
    body = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in kept else "", body)
    body = re.sub(r"\s*\n\s*", "\n", body)
    width, height = (72 * inches for inches in figure.get_size_inches())
    return Markup(
        f'<svg role="img" aria-label="{html.escape(description)}" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" xmlns:xlink="http://www.w3.org/1999/xlink">{body}'
    )
