"""Learning curves: one row per epoch and seed, their columns, and the figure of mean and min-max band over seeds.

Shared by all online stages, so that their curves can be drawn together.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...pipeline.errors import StageError
from ...pipeline.reading import check_file, reading_made

if TYPE_CHECKING:
    from ...datasets.rollout import EpisodeResult

from ...pipeline.artifact import replacing

CURVES_FILE = "curves.csv"
FIGURE_FILE = "curves.svg"
GRID_POINTS = 400
PANEL = (176, 220)
SINGLE = (480, 270)
"""Width and height of a panel among several, and alone."""


@dataclass(frozen=True)
class CurveRow:
    """One evaluation during learning. Returns are sums of rewards of an episode, in environment units."""

    algorithm: str
    task: str
    seed: int
    transitions: int
    """Environment steps so far, all episodes that learning used."""
    train_return: float
    """Mean over the episodes collected since the last row. Failed episodes are left out of every return."""
    greedy_return: float
    """Mean of evaluation episodes with the most likely action."""
    greedy_min: float
    greedy_max: float
    sampled_return: float
    """Mean of evaluation episodes with actions drawn from the policy; NaN if it is deterministic."""
    centres: int = 0
    spectral_radius: float = float("nan")


def completed_returns(results: Iterable[EpisodeResult], task: str, failed: list[str]) -> list[float]:
    """Returns of the completed episodes; the errors of the others are added to `failed`.

    Raises:
        StageError: no episode was completed.
    """
    found = list(results)
    errors = [result.error for result in found if result.error is not None]
    if len(errors) == len(found):
        raise StageError(f"task {task!r}: all {len(found)} episodes failed; the first: {errors[0]}")
    failed += errors
    return [result.return_ for result in found if result.error is None]


def failure_warnings(failed: Sequence[str]) -> list[str]:
    """Return a warning about the failed episodes that a curve leaves out; empty if there are none."""
    if not failed:
        return []
    episodes = "1 episode" if len(failed) == 1 else f"{len(failed)} episodes"
    return [f"{episodes} failed and skipped in the curve; the first: {failed[0]}"]


def write_curves(path: Path, rows: Sequence[CurveRow]) -> None:
    """Write rows as CSV, atomically."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(CurveRow)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def read_curves(path: Path) -> list[CurveRow]:
    """Read what `write_curves` wrote."""
    kinds = {"str": str, "int": int, "float": float}
    check_file(path, StageError)
    with reading_made(path), path.open(newline="") as file:
        return [
            CurveRow(**{field.name: kinds[str(field.type)](row[field.name]) for field in fields(CurveRow)})
            for row in csv.DictReader(file)
        ]


def band(curves: Sequence[Sequence[CurveRow]], grid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean, min, max) over seeds of the latest greedy return at each number of transitions: [3 of grid].

    NaN before every seed has been evaluated once.
    """
    values = np.full((len(curves), len(grid)), np.nan)
    for index, rows in enumerate(curves):
        position = np.searchsorted([row.transitions for row in rows], grid, side="right") - 1
        known = position >= 0
        values[index, known] = np.array([row.greedy_return for row in rows])[position[known]]
    complete = ~np.isnan(values).any(0)
    found = np.full((3, len(grid)), np.nan)
    found[:, complete] = [values[:, complete].mean(0), values[:, complete].min(0), values[:, complete].max(0)]
    return found[0], found[1], found[2]


def by_seed(rows: Sequence[CurveRow]) -> dict[str, list[list[CurveRow]]]:
    """Rows of each seed in order, by algorithm."""
    found: dict[str, dict[int, list[CurveRow]]] = {}
    for row in rows:
        found.setdefault(row.algorithm, {}).setdefault(row.seed, []).append(row)
    return {
        name: [sorted(one, key=lambda row: row.transitions) for one in seeds.values()] for name, seeds in found.items()
    }


def draw_curves(rows: Sequence[CurveRow], threshold: float | None, path: Path) -> None:
    """Write the figure, a panel per algorithm: mean over seeds, and the band between the worst and the best of them.

    The first algorithm's mean is also drawn in the other panels.
    """
    from matplotlib.ticker import MaxNLocator

    from ..figures.drawing import GREY, PALETTE, drawing_style, new_row, save_svg

    curves: Mapping[str, list[list[CurveRow]]] = by_seed(rows)
    grid = np.linspace(0, max(row.transitions for row in rows), GRID_POINTS)
    bands = {name: band(seeds, grid) for name, seeds in curves.items()}
    first = next(iter(bands))
    with drawing_style():
        figure, panels = new_row(len(bands), *(PANEL if len(bands) > 1 else SINGLE), left=62, top=28)
        for axes, (index, (name, (mean, low, high))) in zip(panels, enumerate(bands.items()), strict=True):
            colour = PALETTE[index % len(PALETTE)]
            if name != first:
                axes.plot(grid, bands[first][0], color=GREY, linewidth=1, label=first)
            if threshold is not None:
                axes.axhline(threshold, color=GREY, linestyle="--", linewidth=1, label="solved")
            axes.fill_between(grid, low, high, color=colour, alpha=0.25, linewidth=0, step="post")
            axes.plot(grid, mean, color=colour, drawstyle="steps-post")
            axes.set_title(f"{name}, {len(curves[name])} seeds")
            axes.set_xlabel("transitions")
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.xaxis.set_major_formatter("{x:,.0f}")
        panels[0].set(xlim=(0, None), ylabel="return, greedy")
        if len(bands) > 1 or threshold is not None:
            panels[-1].legend(frameon=False, fontsize=9)
        save_svg(figure, path)
