"""Figures of a study: scores, open-loop errors and gradients by variant, as lines over a numeric parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, StrMethodFormatter

from ..evaluation.config import BASELINES
from ..figures.drawing import BASELINE_STYLES, GREY, MARKERS, PALETTE, drawing_style, new_panel, score_limits, to_svg
from .study_results import StudyResults
from .training_figures import R2_FLOOR

PANEL = (340, 240)
ROW_WIDTH = 516
CHARACTER = 6.6
"""Width of a character at 10 px, on the wide side."""
ESTIMATE = ["score", "low", "high"]
LOG_RATIO = 4.0
"""A numeric axis is logarithmic if its largest value is at least this multiple of its smallest."""

Styles = dict[str, tuple[str, str]]


def series_styles(names: Sequence[str]) -> Styles:
    """(colour, marker) by series, the same in every figure of the page."""
    if len(names) <= len(PALETTE):
        return dict(zip(names, zip(PALETTE, MARKERS, strict=True), strict=False))
    colours = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, len(names)))
    return dict(zip(names, zip(map(to_hex, colours), cycle(MARKERS), strict=False), strict=False))


def line_styles(results: StudyResults) -> Styles:
    """Styles of the lines over the numeric axis: by series, or by algorithm with a single series."""
    names = list(dict.fromkeys(results.series(row) for row in results.headline.to_dict("records")))
    if names not in ([], [""]):
        return series_styles(names)
    return series_styles([name for name in results.algorithms if name not in BASELINES]) | BASELINE_STYLES


def draw_scores(results: StudyResults, statistic: str) -> list[tuple[str, Markup]]:
    """(caption, figure) of the scores over all tasks: over the numeric axis, or a row per variant.

    Args:
        statistic: mean or iqm.
    """
    rows = results.headline[(results.headline["row"] == statistic) & results.headline["score"].notna()]
    label = {"mean": "Mean score", "iqm": "IQM score"}[statistic]
    if rows.empty:
        return []
    with drawing_style():
        if results.axis is None:
            return [(label, _to_svg(_score_rows(results, rows, label), rows))]
        panels = []
        for panel in _panels(results, rows):
            figure, axes = new_panel(*PANEL, left=50, bottom=42)
            _draw_scores(axes, results, panel, label)
            own = rows[rows["algorithm"].isin([panel.caption])] if panel.caption else rows
            panels.append((f"{label}, {panel.caption}" if panel.caption else label, _to_svg(figure, own)))
        return panels


def draw_png(results: StudyResults, path: Path) -> None:
    """Mean score and IQM for a README: on white, with a key."""
    rows = results.headline[results.headline["row"].isin(["mean", "iqm"]) & results.headline["score"].notna()]
    if rows.empty:
        return
    with drawing_style():
        if results.axis is None:
            figure = _score_rows(results, rows[rows["row"] == "mean"], "Mean score")
        else:
            panels = [
                (label, panel)
                for statistic, label in (("mean", "Mean score"), ("iqm", "IQM score"))
                for panel in _panels(results, rows[rows["row"] == statistic])
            ]
            columns = len(panels) // 2
            figure = Figure(figsize=(4.2 * columns, 5.6), layout="constrained")
            for place, (label, panel) in enumerate(panels):
                axes = figure.add_subplot(2, columns, place + 1)
                axes.set_title(panel.caption)
                handles = _draw_scores(axes, results, panel, label)
                if place == 0:
                    axes.legend(handles.values(), handles, fontsize=8)
        figure.set_facecolor("white")
        figure.set_dpi(144)
        FigureCanvasAgg(figure).print_png(path)


def draw_models(models: Mapping[str, pd.DataFrame], columns: Mapping[str, str]) -> list[tuple[str, Markup]]:
    """Medians over tasks by steps predicted open loop, a line per model and a panel per column.

    Args:
        models: predicted and the columns, by label.
        columns: label by column; columns without values are left out.
    """
    styles = series_styles(list(models))
    panels = []
    with drawing_style():
        for column, label in columns.items():
            curves = {name: frame.dropna(subset=column) for name, frame in models.items()}
            if all(curve.empty for curve in curves.values()):
                continue
            figure, axes = new_panel(*PANEL, left=56, bottom=42)
            for name, curve in curves.items():
                values = np.clip(curve[column], R2_FLOOR, 1) if column == "reward_r2" else curve[column]
                axes.plot(curve["predicted"], values, color=styles[name][0], marker=styles[name][1], markersize=4)
            axes.set(xlabel="Steps predicted open loop")
            if column == "reward_r2":
                axes.set(ylim=(R2_FLOOR - 0.03, 1.03))
            elif all((curve[column] > 0).all() for curve in curves.values()):
                _log(axes)
            _number_axis(axes, sorted({float(x) for curve in curves.values() for x in curve["predicted"]}))
            ends = [f"{name} {curve[column].iloc[-1]:.3g}" for name, curve in curves.items() if not curve.empty]
            text = f"{label}, median over tasks, by steps predicted; at the longest horizon: {', '.join(ends)}"
            panels.append((f"{label}, median over tasks", to_svg(figure, text)))
    return panels


def draw_actor_gradients(results: StudyResults, rows: pd.DataFrame) -> list[tuple[str, Markup]]:
    """Median with the 10% to 90% range of each statistic over the numeric axis; nothing without such an axis.

    Args:
        rows: group, parameters, statistic, algorithm, and quantiles over all tasks.
    """
    if results.axis is None:
        return []
    panels, styles = [], line_styles(results)
    with drawing_style():
        for statistic, of_statistic in rows.groupby("statistic", sort=False):
            for panel in _panels(results, of_statistic):
                figure, axes = new_panel(*PANEL, left=56, bottom=42)
                for name, line in panel.lines.items():
                    colour, marker = styles[name]
                    axes.plot(line["axis"], line["median"], color=colour, marker=marker, markersize=5)
                    axes.fill_between(line["axis"], line["p10"], line["p90"], color=colour, alpha=0.15, linewidth=0)
                axes.set(xlabel=results.axis)
                if all((line["p10"] > 0).all() for line in panel.lines.values()):
                    _log(axes)
                _number_axis(axes, panel.xs)
                caption = f"{statistic}, {panel.caption}" if panel.caption else str(statistic)
                texts = [f"{row.group} {row.median:.3g}" for line in panel.lines.values() for row in line.itertuples()]
                panels.append((caption, to_svg(figure, f"{caption}: median by variant: {', '.join(texts)}")))
    return panels


@dataclass(frozen=True)
class _Panel:
    """Lines over the numeric axis."""

    caption: str
    lines: Mapping[str, pd.DataFrame]
    """By name in `line_styles`, in the order of the axis."""
    baselines: Mapping[str, float]
    """Drawn as dashed lines, where the lines are series."""

    @property
    def xs(self) -> list[float]:
        return sorted({float(x) for line in self.lines.values() for x in line["axis"]})

    def dodged(self) -> list[np.ndarray]:
        """Places of each line's points, side by side so that their intervals do not hide each other."""
        log = _is_log(self.xs)
        span = math.log(self.xs[-1] / self.xs[0]) if log else self.xs[-1] - self.xs[0]
        places = []
        for index, line in enumerate(self.lines.values()):
            shift = 0.012 * span * (index - (len(self.lines) - 1) / 2)
            x = line["axis"].to_numpy(float)
            places.append(x * math.exp(shift) if log else x + shift)
        return places


def _panels(results: StudyResults, rows: pd.DataFrame) -> list[_Panel]:
    """A panel per learned algorithm with a line per series; with one series, all algorithms in one panel."""
    series = pd.Series([results.series(row) for row in rows.to_dict("records")], index=rows.index)
    rows = rows.assign(axis=rows[str(results.axis)].astype(float)).sort_values("axis", kind="stable")
    if "" in set(series):
        return [_Panel("", dict(list(rows.groupby("algorithm", sort=False))), {})]
    means = rows.groupby("algorithm", sort=False)["score"].mean() if "score" in rows else {}
    baselines = {name: float(means[name]) for name in BASELINES if name in means}
    learned = [name for name in results.algorithms if name in set(rows["algorithm"]) and name not in BASELINES]
    return [
        _Panel(name, dict(list(rows[rows["algorithm"] == name].groupby(series, sort=False))), baselines)
        for name in learned
    ]


def _draw_scores(axes: Axes, results: StudyResults, panel: _Panel, label: str) -> dict[str, Any]:
    """Draw the lines of a panel with their intervals; returns what stands for each in a key."""
    styles = line_styles(results)
    handles: dict[str, Any] = {}
    for name, line, x in zip(panel.lines, panel.lines.values(), panel.dodged(), strict=True):
        ends = np.clip([line["score"] - line["low"], line["high"] - line["score"]], 0, None)
        handles[name] = axes.errorbar(x, line["score"], yerr=ends, color=styles[name][0], marker=styles[name][1],
                                      markersize=5, linewidth=1.5, capsize=3)  # fmt: skip
    for name, value in panel.baselines.items():
        handles[name] = axes.axhline(value, color=BASELINE_STYLES[name][0], linewidth=1, linestyle=(0, (4, 3)))
    axes.set(xlabel=results.axis, ylabel=label)
    low, high = score_limits(pd.concat(panel.lines.values())[ESTIMATE])
    axes.set_ylim(low - 0.03, high + 0.03)
    _number_axis(axes, panel.xs)
    return handles


def _score_rows(results: StudyResults, rows: pd.DataFrame, label: str) -> Figure:
    """A row per group: each algorithm's score with its interval."""
    groups = [group for group in results.groups if group in set(rows["group"])]
    shown = [name for name in results.algorithms if name in set(rows["algorithm"])]
    styles = series_styles([name for name in shown if name not in BASELINES]) | BASELINE_STYLES
    left = 20 + math.ceil(CHARACTER * max(map(len, groups)))
    points: dict[str, Line2D] = {}
    low, high = score_limits(rows[ESTIMATE])
    figure, axes = new_panel(left + ROW_WIDTH, 84 + (14 + 12 * len(shown)) * len(groups), left=left, top=34)
    for place, group in enumerate(groups):
        axes.axhspan(place - 0.5, place + 0.5, color=GREY, alpha=0.08 if place % 2 else 0.0, linewidth=0)
        for index, name in enumerate(shown):
            own = rows[(rows["group"] == group) & (rows["algorithm"] == name)]
            if own.empty:
                continue
            (row,) = own.to_dict("records")
            y, (colour, marker) = place + 0.7 * ((index + 0.5) / len(shown) - 0.5), styles[name]
            if not math.isnan(row["low"]):
                axes.plot([max(row["low"], low), min(row["high"], high)], [y, y], color=colour, linewidth=2)
            (point,) = axes.plot(row["score"], y, marker, color=colour, markersize=6, clip_on=False, linestyle="none")
            points.setdefault(name, point)
    axes.set(xlabel=label, yticks=range(len(groups)), yticklabels=groups)
    axes.set_xlim(low, high)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.legend(points.values(), points, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(shown), frameon=False)
    return figure


def _number_axis(axes: Axes, values: Sequence[float]) -> None:
    """Ticks at the values themselves."""
    if _is_log(values):
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(list(values)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _is_log(values: Sequence[float]) -> bool:
    return values[0] > 0 and values[-1] / values[0] >= LOG_RATIO


def _log(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _to_svg(figure: Figure, rows: pd.DataFrame) -> Markup:
    texts = [f"{row['group']} {row['algorithm']} {row['score']:.2f}" for row in rows.to_dict("records")]
    statistic = {"mean": "Mean score", "iqm": "Interquartile mean score"}[str(rows["row"].iloc[0])]
    return to_svg(figure, f"{statistic} over all tasks with 95% interval: {', '.join(texts)}")
