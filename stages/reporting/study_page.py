"""Assemble the page of a study from tables and figures of its variants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..evaluation.config import BASELINES
from ..evaluation.scores import AlgorithmScores, Estimate, returns_text, two_decimals
from ..evaluation.statistics import INTERVAL_METHOD
from . import study_figures
from .machine import hardware_line
from .page import render
from .study_results import QUANTILES, RUNS, StudyResults

ERROR_LABELS = {"reward_r2": "Reward R²", "latent_mse": "Latent error"}
GROWTH_LABELS = {"norm": "Jacobian norm", "return_norm": "Return gradient"}


def render_study(results: StudyResults, title: str, description: str) -> str:
    """Render the whole page as self-contained HTML."""
    return render(
        "study.html",
        title=title or "Study",
        description=description,
        variants=results.variants,
        problems={name: one.problem for name, one in results.variants.items() if one.problem},
        styles=study_figures.line_styles(results) if results.axis else {},
        scores=_scores(results),
        tasks=_tasks(results),
        errors=_models(results, results.open_loop, ERROR_LABELS),
        growth=_models(results, results.model_gradients, GROWTH_LABELS),
        gradients=_actor_gradients(results),
        files=[f"{name}.csv" for name in results.tables],
        hardware=hardware_line(),
        interval_method=INTERVAL_METHOD,
    )


def _scores(results: StudyResults) -> dict[str, Any]:
    """The headline table, a row per group, and the figures."""
    headline = results.headline
    overall, by_task = headline[headline["row"] != "task"], headline[headline["row"] == "task"]
    rows = []
    for group in results.groups:
        own = overall[overall["group"] == group]
        if own.empty:
            continue
        estimates = {}
        for name, runs in own.groupby("algorithm", sort=False):
            ends = runs.set_index("row")[["score", "low", "high"]]
            values: dict[Any, Any] = {row: Estimate(*map(_none_if_nan, ends.loc[row])) for row in ends.index}
            tasks = by_task[(by_task["group"] == group) & (by_task["algorithm"] == name)]
            returns = tasks.dropna(subset="return_mean").set_index("task")["return_mean"].to_dict()
            scored = int(tasks["score"].notna().sum())
            estimates[str(name)] = AlgorithmScores(**values, tasks=scored, of_tasks=len(tasks), returns=returns)
        counts = {name: int(own[name].max()) for name in ("seeds", "runs")}
        rows.append({"group": group, "estimates": estimates} | counts)
    learned = [name for name in results.algorithms if name not in BASELINES]
    return {
        "rows": rows,
        "columns": [(name, "mean", "mean") for name in results.algorithms] + [(name, "iqm", "IQM") for name in learned],
        "figures": [*study_figures.draw_scores(results, "mean"), *study_figures.draw_scores(results, "iqm")],
        "runs": int(headline["runs"].max()) if RUNS in set(headline["interval"]) else 1,
    }


def _tasks(results: StudyResults) -> list[dict[str, Any]]:
    """A table per learned algorithm: score by group and task, or the return if there is no score."""
    rows = results.headline[results.headline["row"] == "task"]
    tables = []
    for algorithm in results.algorithms:
        own = rows[rows["algorithm"] == algorithm]
        cells = {(row.group, row.task): _cell(row.score, row.return_mean) for row in own.itertuples()}
        if algorithm in BASELINES or not cells:
            continue
        tasks, groups = list(dict.fromkeys(own["task"])), [one for one in results.groups if one in set(own["group"])]
        body = [(group, [cells.get((group, task), "–") for task in tasks]) for group in groups]
        tables.append({"algorithm": algorithm, "tasks": tasks, "rows": body})
    return tables


def _cell(score: float, return_mean: float) -> str:
    if score == score:
        return two_decimals(score)
    return returns_text([return_mean] if return_mean == return_mean else [])


def _models(results: StudyResults, rows: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, Any]:
    """By model and steps predicted: median over tasks, mean over runs.

    Args:
        rows: variant, group, model, task, predicted and the columns.
        columns: label by column.
    """
    frames: dict[frozenset[str], list[pd.DataFrame]] = {}
    for _, runs in rows.groupby("model", sort=False):
        of_model = runs.drop_duplicates(["task", "predicted"]).astype(dict.fromkeys(columns, float))
        medians = of_model.groupby("predicted")[list(columns)].median().reset_index()
        frames.setdefault(frozenset(runs["group"]), []).append(medians)
    models: dict[str, pd.DataFrame] = {}
    for groups, own in frames.items():
        label = _label(results, groups)
        name = label if label not in models else " and ".join(sorted(groups))
        models[name] = pd.concat(own).groupby("predicted").mean().reset_index()
    predicted = sorted({int(value) for frame in models.values() for value in frame["predicted"]})
    table = []
    for name, frame in models.items():
        cells = frame.set_index("predicted").reindex(predicted)
        table.append((name, [_none_if_nan(value) for column in columns for value in cells[column]]))
    return {
        "heads": [f"{label} at {count}" for label in columns.values() for count in predicted],
        "rows": table,
        "charts": study_figures.draw_models(models, columns),
        "styles": study_figures.series_styles(list(models)),
    }


def _label(results: StudyResults, groups: frozenset[str]) -> str:
    """What groups have in common."""
    parts = [set(group.split(",")) for group in groups]
    first = next(group for group in results.groups if group in groups)
    return ",".join(part for part in first.split(",") if all(part in other for other in parts)) or "all variants"


def _actor_gradients(results: StudyResults) -> dict[str, Any]:
    """Quantiles over all tasks, mean over the runs of a group."""
    overall = results.actor_gradients[results.actor_gradients["task"] == ""]
    keys = ["statistic", "algorithm", "group", *results.parameters]
    rows = overall.groupby(keys, sort=False)[list(QUANTILES)].mean().reset_index()
    return {"rows": rows.to_dict("records"), "charts": study_figures.draw_actor_gradients(results, rows)}


def _none_if_nan(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)
