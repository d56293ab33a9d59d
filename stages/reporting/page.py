"""Assemble the report page: its sections, their order, and the reason for each missing one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import yaml

from ...pipeline.artifact import SOURCE, package_versions
from ...pipeline.logging import duration
from ...pipeline.wording import counted
from ..evaluation.config import BASELINES
from ..evaluation.scores import AlgorithmScores, ScoreRow
from ..figures.drawing import algorithm_styles, drawing_style
from ..fqe.estimates import rank_correlations, select
from . import gradient_figures, reasons, score_figures, training_figures
from .machine import hardware, hardware_line
from .results import ReportData
from .scoring import ScoreTable, score_table

if TYPE_CHECKING:
    from .videos import Video

WEAK_R2 = 0.5
"""Rewards predicted with a lower R2 are marked in the open-loop table."""

WORSE_R2 = 0.05
"""Tasks that lose more R2 than this in finetuning are marked."""

NO_SCORE = "no task has a score (the tables above show returns)"

SCORE_KINDS = {
    "return_per_1000": "return / 1000",
    "success": "success rate (success at any step of the episode)",
    "normalised": "(return − random) / (expert − random)",
}

Styles = Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """A block of the page."""

    name: str
    """Its branch in page.html, and its anchor."""
    title: str
    content: Any = None
    missing: str = ""
    """Why the section is not available; empty if it is."""


def render_page(data: ReportData, title: str = "", videos: Sequence[Video] | None = None) -> str:
    """Render the whole page as HTML.

    Args:
        title: heading; empty: the name of the run.
        videos: of episodes; None leaves the section out.
    """
    styles = algorithm_styles(data.algorithms)
    with drawing_style():
        sections = list(_sections(data, styles, videos))
    return render("page.html", title=title or data.config.get("name") or "Orrery run", sections=sections, styles=styles)


def render(template: str, **values: Any) -> str:
    """A template of this folder, filled in."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "duration": duration}
    return environment.get_template(template).render(values)


def number(value: float | None) -> str:
    """Format with at most four significant digits and thousands separators; a dash if unknown."""
    if value is None or math.isnan(value):
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def _sections(data: ReportData, styles: Styles, videos: Sequence[Video] | None) -> Iterator[Section]:
    yield from _score_sections(data, styles)
    if videos is not None:
        missing = "" if videos else "the run has no policies"
        yield Section("videos", "Videos", videos, missing)
    yield _imagined(data, styles)
    if data.estimates:
        yield Section("estimates", "Values estimated from the data", _estimates(data))
    yield _open_loop(data)
    if data.model_gradients is not None:
        yield Section("model_gradients", "Gradients through the world model", _model_gradients(data))
    if data.forgetting is not None or data.added:  # for other models nothing is missing
        yield Section("finetuning", "Finetuning", _finetuning(data))
    yield _losses(data)
    yield _extraction(data, styles)
    yield Section("data", "Data", _data(data), "" if data.data else reasons.no_input(data, "store"))
    config = yaml.safe_dump(dict(data.config), sort_keys=False)
    yield Section("config", "Configuration", config, "" if data.config else "the report was not written by a run")
    versions = {"hardware": hardware(), "versions": version_rows(data.records)}
    yield Section("versions", "Hardware and versions", versions)
    missing = "" if data.records else "no stage has finished"
    yield Section("stages", "Stages", data.records, missing)
    yield Section("lineage", "Lineage", list(zip(data.records.items(), made_from(data.records), strict=True)), missing)


def _score_sections(data: ReportData, styles: Styles) -> list[Section]:
    titles = {
        "result": "Result",
        "scores": "Scores by task",
        "algorithms": "Scores by algorithm",
        "seeds": "Scores by seed",
    }
    table = score_table(data)
    if table is None:
        return [Section(name, title, missing=reasons.no_scores(data)) for name, title in titles.items()]
    shown = {name: styles[name] for name in table.algorithms}
    charts = score_figures.draw_tasks(table.runs, data.tasks, shown)
    contents = {
        "result": _result(data, table),
        "scores": _scores(data, table),
        "algorithms": score_figures.draw_aggregates(table.overall, shown),
        "seeds": {"charts": charts, "keys": table.algorithms} if charts else {},
    }
    return [Section(name, title, contents[name], "" if contents[name] else NO_SCORE) for name, title in titles.items()]


def _result(data: ReportData, table: ScoreTable) -> dict[str, Any]:
    suites, protocol = data.summary.by_suite, data.summary.protocol
    learned = [name for name in table.algorithms if name not in BASELINES]
    seeds = max((table.overall[name].seeds for name in learned or table.algorithms), default=0)
    evaluated = sum(not row.skipped for row in table.rows)
    skipped = f" ({len(table.rows) - evaluated} more not evaluated)" if evaluated < len(table.rows) else ""
    episodes = protocol.get("episodes", "an unknown number of")
    return {
        "table": table,
        "learned": learned,
        "suites": suites if len(suites) > 1 else {},
        "costs": {} if data.costs is None else data.costs.groupby("algorithm").cpu_seconds.mean().to_dict(),
        "unscored": AlgorithmScores(),
        "protocol": f"{counted(evaluated, 'task')}{skipped}, seeds per task: {seeds}, episodes per seed: {episodes}. "
        f"Scores are of the final policies, acting deterministically. Report written on {hardware_line()}.",
        "interval": protocol.get("interval", ""),
    }


def _scores(data: ReportData, table: ScoreTable) -> dict[str, Any]:
    errors = Counter((failure.algorithm, failure.task, failure.error) for failure in data.summary.failures)
    runs = table.runs.assign(cpu_seconds=math.nan)
    if data.costs is not None:
        runs = table.runs.merge(data.costs, how="left", on=["algorithm", "task", "seed"])
    kinds = dict.fromkeys((one.suite, SCORE_KINDS.get(one.score_kind, one.score_kind)) for one in data.specs.values())
    return {
        "table": table,
        "kinds": [f"{suite}: {kind}" for suite, kind in kinds],
        "errors": [(*key, count) for key, count in errors.items()],
        "references": data.summary.references,
        "columns": [
            *((one.name, one.metadata["label"]) for one in fields(ScoreRow) if one.name in runs),
            ("cpu_seconds", "CPU-s"),
        ],
        "runs": runs.to_dict("records"),
    }


def _imagined(data: ReportData, styles: Styles) -> Section:
    name, title = "imagined", "Imagined and real return"
    runs = data.imagined
    if runs.empty:
        return Section(name, title, missing=reasons.no_imagination(data))
    content = {
        "charts": score_figures.draw_imagined(runs, styles),
        "keys": list(dict.fromkeys(runs["algorithm"])),
        "rows": runs.groupby(["task", "algorithm"], sort=False).mean(numeric_only=True).reset_index(),
        "exploiting": data.summary.exploiting,
    }
    return Section(name, title, content)


def _estimates(data: ReportData) -> dict[str, Any]:
    selected = select(data.estimates)
    return {
        "rows": [
            (one, data.real_returns.get((one.algorithm, one.task, one.seed)), selected[one.task] == one)
            for one in data.estimates
        ],
        "correlations": rank_correlations(data.estimates, data.real_returns),
    }


def _open_loop(data: ReportData) -> Section:
    """R^2 by task and horizon at the last validation; NaN if the held-out reward hardly varies."""
    name, title = "open_loop", "Open-loop prediction of reward"
    if data.validation is None or data.predicts_no_reward:
        return Section(name, title, missing=reasons.no_validation(data))
    last = data.last_validation.pivot_table(index="task", columns="horizon", values="reward_r2", dropna=False)
    content = {
        "rows": [(task, last.loc[task].tolist()) for task in data.tasks if task in last.index],
        "charts": training_figures.draw_open_loop(data.validation, data.tasks),
        "colours": training_figures.horizon_colours(data.validation),
        "weak": WEAK_R2,
        "floor": training_figures.R2_FLOOR,
        "step": int(data.validation["step"].max()),
    }
    return Section(name, title, content)


def _model_gradients(data: ReportData) -> dict[str, Any]:
    assert data.model_gradients is not None
    return {
        "rows": data.model_gradients.to_dict("records"),
        "charts": gradient_figures.draw_growth(data.model_gradients, data.tasks),
        "colours": {"state": gradient_figures.STATE, "return": gradient_figures.RETURN},
        "weak": WEAK_R2,
    }


def _finetuning(data: ReportData) -> dict[str, Any]:
    """R^2 before and after at the longest horizon: old tasks first; one row per model if there is one per new task."""
    table, rows = data.forgetting, []
    if table is not None:
        rows = table[table.horizon == table.horizon.max()].sort_values("new", kind="stable").to_dict("records")
    return {"rows": rows, "added": data.added, "worse": WORSE_R2}


def _losses(data: ReportData) -> Section:
    name, title = "losses", "Losses of the world model"
    if data.training is None:
        return Section(name, title, missing=reasons.no_losses(data))
    return Section(name, title, training_figures.draw_losses(data.training))


def _extraction(data: ReportData, styles: Styles) -> Section:
    name, title, curves = "extraction", "Extraction", data.extraction
    if curves is None:
        return Section(name, title, missing=reasons.no_curves(data))
    charts = training_figures.draw_extraction(curves, data.tasks, data.policies, styles)
    shown = {
        "imagines": bool(curves["imagined_reward"].notna().any()),
        "plays": bool(curves["evaluation_return"].notna().any()),
    }
    return Section(name, title, {"charts": charts, "keys": list(dict.fromkeys(curves["algorithm"])), **shown})


def _data(data: ReportData) -> dict[str, Any]:
    """Statistics of each task of the store, and the warnings of validation and collection."""
    warned = []
    for one in data.data:
        warned += [(one.task, text) for kind in ("warnings", "notes") for text in one.findings.get(kind, [])]
        if failed := data.collected.get(one.task, {}).get("failed_episodes"):
            text = f"{counted(failed, 'episode')} failed during collection; failed episodes are not in the data"
            warned.append((one.task, text))
    return {"rows": data.data, "warned": warned}


def made_from(records: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Inputs of each stage, by the name of the stage that wrote them."""
    makers = {record["digest"]: name for name, record in records.items()}
    return [
        [
            f"{name}: {makers.get(one['digest'], one['path'])} {one['digest'][:12]}"
            for name, many in record["inputs"].items()
            for one in many
        ]
        for record in records.values()
    ]


def version_rows(records: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(package, version) here, and the versions of stages that ran with others."""
    rows = []
    for package, version in package_versions().items():
        if package == SOURCE:
            continue  # digests; `orrery plan` says what of the code has changed
        others = [
            f"{record['versions'][package]} in {name}"
            for name, record in records.items()
            if record["versions"].get(package, version) != version
        ]
        rows.append((package, f"{version} ({'; '.join(others)})" if others else version))
    return rows
