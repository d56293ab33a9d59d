"""Puts the page of a study together, from tables and figures of its variants."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from ..evaluate import BASELINES
from . import study_figures
from .machine import hardware_line
from .scoring import interval_text
from .study_results import PIPELINES, QUANTILES, StudyResults
from .tables import number

Styles = Mapping[str, tuple[str, str]]


def render_study(results: StudyResults, title: str, description: str) -> str:
    """The whole page as HTML, self-contained."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "interval": interval_text}
    models = _models(results)
    return environment.get_template("study.html").render(
        title=title or "Study",
        description=description,
        variants=results.variants,
        problems={name: one.problem for name, one in results.variants.items() if one.problem},
        styles=study_figures.line_styles(results) if results.axis else {},
        axis=results.axis,
        scores=_scores(results),
        tasks=_tasks(results),
        models={"rows": _model_rows(models), "charts": study_figures.draw_open_loop(results, models),
                "styles": study_figures.series_styles(list(models))},
        gradients=_gradients(results),
        hardware=hardware_line(),
    )  # fmt: skip


def _scores(results: StudyResults) -> dict[str, Any]:
    """The headline table, a row per group, and the figures."""
    headline = results.headline
    overall = headline[headline["row"] != "task"]
    rows = []
    for group in results.groups:
        own = overall[overall["group"] == group]
        if own.empty:
            continue
        estimates: dict[str, dict[str, Any]] = {}
        for row in own.to_dict("records"):
            ends = {"value": row["score"], "low": row["low"], "high": row["high"]}
            values = {name: _none_if_nan(value) for name, value in ends.items()}
            estimates.setdefault(row["algorithm"], {})[row["row"]] = values
        counts = {name: int(own[name].max()) for name in ("seeds", "pipelines")}
        rows.append({"group": group, "estimates": estimates} | counts)
    learned = [name for name in results.algorithms if name not in BASELINES]
    return {
        "rows": rows,
        "columns": [(name, "mean", "mean") for name in results.algorithms] + [(name, "iqm", "IQM") for name in learned],
        "figures": [*study_figures.draw_scores(results, "mean"), *study_figures.draw_scores(results, "iqm")],
        "pipelines": int(headline["pipelines"].max()) if PIPELINES in set(headline["interval"]) else 1,
    }


def _tasks(results: StudyResults) -> list[dict[str, Any]]:
    """A table per learned algorithm: score by group and task."""
    rows = results.headline[results.headline["row"] == "task"]
    tables = []
    for algorithm in results.algorithms:
        own = rows[rows["algorithm"] == algorithm]
        cells = {(row.group, row.task): row.score for row in own.itertuples()}
        if algorithm in BASELINES or not cells:
            continue
        tasks, groups = list(dict.fromkeys(own["task"])), [one for one in results.groups if one in set(own["group"])]
        body = [(group, [_none_if_nan(cells.get((group, task))) for task in tasks]) for group in groups]
        tables.append({"algorithm": algorithm, "tasks": tasks, "rows": body})
    return tables


def _models(results: StudyResults) -> dict[str, pd.DataFrame]:
    """Errors by decisions predicted, median over tasks and mean over pipelines, by what tells the models apart."""
    frames: dict[frozenset[str], list[pd.DataFrame]] = {}
    for _, own in results.open_loop.groupby("model", sort=False):
        one = own.drop_duplicates(["task", "predicted"])
        medians = one.groupby("predicted")[["reward_r2", "latent_mse"]].median().reset_index()
        frames.setdefault(frozenset(own["group"]), []).append(medians)
    labelled = {}
    for groups, models in frames.items():
        pooled = pd.concat(models).groupby("predicted").mean().reset_index()
        labelled[_label(results, groups)] = pooled
    return labelled


def _label(results: StudyResults, groups: frozenset[str]) -> str:
    """What groups have in common."""
    parts = [set(group.split(",")) for group in groups]
    first = next(group for group in results.groups if group in groups)
    return ",".join(part for part in first.split(",") if all(part in other for other in parts)) or "all variants"


def _model_rows(models: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    predicted = sorted({int(value) for frame in models.values() for value in frame["predicted"]})
    rows = []
    for name, frame in models.items():
        by_horizon = frame.set_index("predicted")
        values = {
            column: [_none_if_nan(by_horizon[column].get(horizon)) for horizon in predicted]
            for column in ("reward_r2", "latent_mse")
        }
        rows.append({"model": name} | values)
    return {"predicted": predicted, "rows": rows}


def _gradients(results: StudyResults) -> dict[str, Any]:
    """Quantiles over all tasks, mean over the pipelines of a group."""
    overall = results.gradients[results.gradients["task"] == ""]
    keys = ["statistic", "algorithm", "group", *results.parameters]
    rows = overall.groupby(keys, sort=False)[list(QUANTILES)].mean().reset_index()
    return {"rows": rows.to_dict("records"), "charts": study_figures.draw_gradients(results, rows)}


def _none_if_nan(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)
