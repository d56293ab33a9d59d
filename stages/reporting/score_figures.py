"""Figures of scores: by algorithm, by task, and real against imagined return."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes

from ..evaluation.scores import AlgorithmScores, Estimate
from ..figures.drawing import GREY, new_panel, score_limits, to_svg

Styles = Mapping[str, tuple[str, str]]
WIDTH = 516
"""Two such figures fit beside each other on a laptop, one on a narrow window or a printed page."""
ROWS_PER_CHART = 24
"""Tasks per chart: as many as fit on a printed page."""
LABELLED_POINTS = 14
CHARACTER = 6.3
"""Width of a character at 10 px, on the wide side."""


def draw_aggregates(overall: Mapping[str, AlgorithmScores], styles: Styles) -> list[Markup]:
    """Bars of mean and of IQM with 95% intervals, one panel each."""
    names = [name for name in styles if name in overall and overall[name].mean.value is not None]
    if not names:
        return []
    left = 20 + math.ceil(CHARACTER * 1.1 * max(map(len, names)))
    low, high = score_limits([astuple(one) for name in names for one in (overall[name].mean, overall[name].iqm)])
    panels = []
    for statistic, title in (("mean", "Mean score"), ("iqm", "Interquartile mean (IQM) score")):
        figure, axes = new_panel(WIDTH, 56 + 34 * len(names), left=left, right=108)
        for row, name in enumerate(names):
            estimate: Estimate = getattr(overall[name], statistic)
            assert estimate.value is not None
            colour = styles[name][0]
            axes.barh(row, estimate.value, height=0.6, color=colour, alpha=0.55, linewidth=0)
            end = max(estimate.value, 0.0)
            if estimate.low is not None and estimate.high is not None:
                interval = [max(estimate.low, low), min(estimate.high, high)]
                axes.plot(interval, [row, row], color=colour, linewidth=2.2, marker="|", markersize=9, clip_on=False)
                end = max(end, interval[1])
            axes.annotate(str(estimate), (end, row), (5, 0), textcoords="offset points", va="center", size=10)
        axes.set(xlim=(low, high), xlabel=title, yticks=range(len(names)), yticklabels=names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        texts = [f"{name} {getattr(overall[name], statistic)}" for name in names]
        panels.append(to_svg(figure, f"{title} by algorithm with 95% interval: {', '.join(texts)}"))
    return panels


def draw_tasks(scores: pd.DataFrame, tasks: Sequence[str], styles: Styles) -> list[tuple[str, Markup]]:
    """Dot charts by suite, a row per task: each seed as a small point, the mean over seeds as a large one."""
    finite = scores[np.isfinite(scores["score"])]
    shown = [name for name in styles if name in set(finite["algorithm"])]
    if finite.empty:
        return []
    limits = (min(0.0, finite["score"].min()) - 0.03, max(1.0, finite["score"].max()) + 0.03)
    charts = []
    for suite, own in _by_suite([task for task in tasks if task in set(scores["task"])]):
        for first in range(0, len(own), ROWS_PER_CHART):
            rows = own[first : first + ROWS_PER_CHART]
            left = 16 + math.ceil(CHARACTER * max(len(_short(task)) for task in rows))
            figure, axes = new_panel(WIDTH, 50 + 28 * len(rows), left=left)
            for row, task in enumerate(rows):
                axes.axhspan(row - 0.5, row + 0.5, color=GREY, alpha=0.08 if row % 2 else 0.0, linewidth=0)
                for place, name in enumerate(shown):
                    _draw_runs(axes, row + 0.6 * ((place + 0.5) / len(shown) - 0.5), finite, task, name, styles[name])
            axes.set(xlim=limits, xlabel="Score", yticks=range(len(rows)), yticklabels=[_short(task) for task in rows])
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="y", visible=False)
            part = f", tasks {first + 1} to {first + len(rows)}" if len(own) > ROWS_PER_CHART else ""
            text = f"Scores of {', '.join(shown)} on the {suite} tasks{part}; the numbers are in the score table"
            charts.append((f"{suite}{part}", to_svg(figure, text)))
    return charts


def _draw_runs(axes: Axes, y: float, scores: pd.DataFrame, task: str, name: str, style: tuple[str, str]) -> None:
    values = scores.loc[(scores["task"] == task) & (scores["algorithm"] == name), "score"].to_numpy()
    if len(values):
        colour, marker = style
        if len(values) > 1:
            axes.plot([values.min(), values.max()], [y, y], color=colour, linewidth=1, alpha=0.6)
            axes.plot(values, np.full(len(values), y), "o", color=colour, markersize=2.6, linestyle="none")
        axes.plot(values.mean(), y, marker, color=colour, markersize=6, clip_on=False)


def draw_imagined(imagined: pd.DataFrame, styles: Styles) -> list[tuple[str, Markup]]:
    """Real against imagined return per episode, a panel per suite because their scales differ.

    Args:
        imagined: algorithm, task, seed, imagined_return, real_return; finite.
    """
    panels = []
    for suite, tasks in _by_suite(list(dict.fromkeys(imagined["task"]))):
        own = imagined[imagined["task"].isin(tasks)]
        columns = ["imagined_return", "real_return"]
        low, high = own[columns].min().min(), own[columns].max().max()
        margin = 0.06 * (high - low or 1.0)
        limits = (low - margin, high + margin)
        figure, axes = new_panel(WIDTH, 440, left=52, bottom=42)
        axes.axline((low, low), slope=1, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        means = own.groupby(["algorithm", "task"], sort=False)[columns].mean().reset_index()
        for name in (name for name in styles if name in set(own["algorithm"])):
            colour, marker = styles[name]
            runs, centres = own[own["algorithm"] == name], means[means["algorithm"] == name]
            axes.plot(runs[columns[0]], runs[columns[1]], "o", color=colour, markersize=2.6, alpha=0.7)
            axes.plot(centres[columns[0]], centres[columns[1]], marker, color=colour, markersize=6.5, alpha=0.85)
        axes.set(xlim=limits, ylim=limits, xlabel="Imagined return", ylabel="Real return")
        _label_points(axes, means, own[columns].to_numpy())
        gaps = (means[columns[0]] - means[columns[1]]).to_numpy()
        worst = means.iloc[int(np.argmax(gaps))]
        text = (
            f"Real against imagined return on {suite}. Largest excess of the imagined return: "
            f"{worst['algorithm']} on {worst['task']}, imagined {worst[columns[0]]:.3g}, real {worst[columns[1]]:.3g}"
        )
        panels.append((suite, to_svg(figure, text)))
    return panels


def _label_points(axes: Axes, means: pd.DataFrame, runs: np.ndarray) -> None:
    """Label the first algorithm's point of each task, farthest from the line first, where there is space.

    Args:
        runs: [N, 2], imagined and real, of every seed: points that a label must not hide.
    """
    pixels = axes.transData.transform(means[["imagined_return", "real_return"]].to_numpy())
    points = means.assign(x=pixels[:, 0], y=pixels[:, 1])
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in pixels]
    taken += [(x - 2, y - 2, x + 2, y + 2) for x, y in axes.transData.transform(runs)]
    frame = axes.get_window_extent()
    firsts = points.drop_duplicates("task")
    order = (firsts["x"] - firsts["y"] - (frame.x0 - frame.y0)).abs().sort_values(ascending=False).index
    for point in firsts.loc[order[:LABELLED_POINTS]].itertuples():
        text = _short(str(point.task))
        width = CHARACTER * len(text)
        offsets = ((9, -5), (-9 - width, -5), (-width / 2, 8), (-width / 2, -18), (9, 6), (9, -16))
        for dx, dy in offsets:
            box = (point.x + dx, point.y + dy, point.x + dx + width, point.y + dy + 11)
            inside = box[0] > frame.x0 and box[2] < frame.x1 and box[1] > frame.y0 and box[3] < frame.y1
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                place = axes.transData.inverted().transform((box[0], box[1] + 2))
                axes.text(place[0], place[1], text, size=10)
                break


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _by_suite(tasks: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    for suite in dict.fromkeys(task.split("/", 1)[0] for task in tasks):
        yield suite, [task for task in tasks if task.split("/", 1)[0] == suite]


def _short(task: str) -> str:
    """The name without its suite; long names lose their middle."""
    name = task.split("/", 1)[-1]
    return name if len(name) <= 32 else f"{name[:17]}…{name[-14:]}"
