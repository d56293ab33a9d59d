"""Figures of training: losses of the world model, its open-loop error per task, and extraction per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.colors import to_hex
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from ..figures.drawing import new_panel, to_svg

PANEL = (250, 178)
R2_FLOOR = -0.25
"""Lower limit of the R^2 axis; lower values would flatten the curves."""
ROUND = [1, 2, 2.5, 5, 10]
"""Ticks are multiples of these."""
MAX_POINTS = 300
"""Points per curve; longer logs are averaged over intervals of equal length."""


def horizon_colours(validation: pd.DataFrame) -> dict[int, str]:
    """Colour by horizon: light for short, dark for long, an order that survives grey-scale printing."""
    horizons = sorted(int(horizon) for horizon in validation["horizon"].unique())
    colours = matplotlib.colormaps["viridis_r"](np.linspace(0.2, 0.72, len(horizons)))
    return {horizon: to_hex(colour) for horizon, colour in zip(horizons, colours, strict=True)}


def draw_losses(training: pd.DataFrame) -> list[tuple[str, Markup]]:
    """One panel per logged loss that is not zero throughout."""
    panels = []
    losses = [column for column in training if str(column).startswith("train/")]
    # The total first, then its terms.
    for column in sorted(losses, key=lambda name: name != "train/total"):
        curve = _thin(training[["step", column]].dropna())
        values = curve[column].to_numpy()
        if not len(values) or not values.any():
            continue
        name = column.removeprefix("train/")
        figure, axes = new_panel(*PANEL, left=52)
        axes.plot(curve["step"], values, color="#0072B2", linewidth=1.2)
        axes.set(xlabel="Training step")
        if (values > 0).all():
            axes.set_yscale("log")
            decades = values.max() / values.min() > 30
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades else (1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        text = f"Loss of the world model, {name}: {values[0]:.3g} at first, {values[-1]:.3g} at the end"
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
        panels.append((name, to_svg(figure, text)))
    return panels


def draw_open_loop(validation: pd.DataFrame, tasks: Sequence[str]) -> list[tuple[str, Markup]]:
    """R^2 of the open-loop reward over training steps, a panel per task and a line per horizon."""
    colours = horizon_colours(validation)
    steps = (0, float(validation["step"].max()))
    panels = []
    for task in tasks:
        own = validation[(validation["task"] == task) & validation["reward_r2"].notna()]
        if own.empty:
            continue
        figure, axes = new_panel(*PANEL)
        for horizon, colour in colours.items():
            curve = own[own["horizon"] == horizon].sort_values("step")
            values = np.clip(curve["reward_r2"], R2_FLOOR, 1)
            axes.plot(curve["step"], values, color=colour, linewidth=1.6, marker="o", markersize=2.5)
        axes.set(ylim=(R2_FLOOR - 0.03, 1.03), xlim=steps, xlabel="Training step", yticks=[0, 0.5, 1])
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
        last = own[own["step"] == own["step"].max()].sort_values("horizon")
        numbers = ", ".join(f"{row.reward_r2:.2f} at {row.horizon}" for row in last.itertuples())
        panels.append((task, to_svg(figure, f"Open-loop reward R2 of {task} over training; last: {numbers} steps")))
    return panels


def draw_extraction(
    extraction: pd.DataFrame,
    tasks: Sequence[str],
    policies: Sequence[Mapping[str, Any]],
    styles: Mapping[str, tuple[str, str]],
) -> list[tuple[str, Markup]]:
    """Imagined reward per step and, with extract.evaluate_every, return in the environment, over iterations.

    A panel of each per task and a line per seed. Of imagined rewards, faint lines as logged, strong lines smoothed over
    a tenth of the run.
    """
    anchors = {(entry["task"], entry["algorithm"]): entry.get("anchor") for entry in policies}
    panels = []
    for task in tasks:
        played = extraction[extraction["task"] == task]
        if not (imagined := played.dropna(subset="imagined_reward")).empty:
            panels.append(_draw_imagined(imagined, task, anchors, styles))
        if not (evaluated := played.dropna(subset="evaluation_return")).empty:
            panels.append((f"{task}, return in the environment", _draw_evaluations(evaluated, task, styles)))
    return panels


def _draw_imagined(
    imagined: pd.DataFrame,
    task: str,
    anchors: Mapping[tuple[str, str], float | None],
    styles: Mapping[str, tuple[str, str]],
) -> tuple[str, Markup]:
    """Imagined reward of a task over iterations, and its caption."""
    figure, axes = new_panel(*PANEL, left=52)
    ends, weights = [], []
    for algorithm, runs in imagined.groupby("algorithm", sort=False):
        for _, run in runs.groupby("seed"):
            curve = _thin(run[["iteration", "imagined_reward"]])
            colour = styles[str(algorithm)][0]
            axes.plot(curve["iteration"], curve["imagined_reward"], color=colour, linewidth=0.7, alpha=0.3)
            # Each logged value is the mean over one small batch of start states, which hides the trend.
            smooth = curve["imagined_reward"].rolling(max(1, len(curve) // 10), center=True, min_periods=1).mean()
            axes.plot(curve["iteration"], smooth, color=colour, linewidth=1.2)
        last = runs.loc[runs["iteration"] == runs["iteration"].max(), "imagined_reward"].mean()
        ends.append(f"{algorithm} {last:.3g}")
        if (anchor := anchors.get((task, str(algorithm)))) is not None:
            weights.append(f"{anchor:g}")
    axes.set(xlabel="Iteration")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    note = f" (anchor {', '.join(weights)})" if weights else ""
    text = f"Imagined reward per step of {task} during extraction; mean over seeds at the end: {', '.join(ends)}"
    return f"{task}{note}", to_svg(figure, text)


def _draw_evaluations(evaluated: pd.DataFrame, task: str, styles: Mapping[str, tuple[str, str]]) -> Markup:
    """Returns in the environment over iterations, a line per seed."""
    figure, axes = new_panel(*PANEL, left=52)
    for (algorithm, _), run in evaluated.groupby(["algorithm", "seed"], sort=False):
        colour = styles[str(algorithm)][0]
        axes.plot(run["iteration"], run["evaluation_return"], color=colour, marker=".", linewidth=1.2)
    axes.set(xlabel="Iteration")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    return to_svg(figure, f"Return of the policies in {task} during extraction")


def _thin(curve: pd.DataFrame) -> pd.DataFrame:
    """Return at most `MAX_POINTS` rows, each the mean of equally many consecutive rows."""
    size = -(-len(curve) // MAX_POINTS)
    if size <= 1:
        return curve
    return curve.groupby(np.arange(len(curve)) // size).mean()
