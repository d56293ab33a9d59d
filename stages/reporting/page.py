"""Assemble the report page: its sections, their order, and the reason for each missing one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from ...pipeline.wording import counted
from ..evaluation.config import BASELINES
from ..evaluation.scores import score_text
from ..figures.drawing import algorithm_styles, drawing_style
from . import gradient_figures, reasons, score_figures, tables, training_figures
from .evidence import Evidence
from .machine import hardware, hardware_line
from .scoring import ScoreTable, score_table

WEAK_R2 = 0.5
"""Rewards predicted with a lower R2 are marked in the open-loop table."""

WORSE_R2 = 0.05
"""Tasks that lose more R2 than this in finetuning are marked."""

NO_SCORE = "no task has a score (the tables above show returns)"

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


def render_page(evidence: Evidence, title: str = "") -> str:
    """Render the whole page as HTML.

    Args:
        title: heading; empty: the name of the run.
    """
    styles = algorithm_styles(evidence.algorithms)
    with drawing_style():
        sections = _sections(evidence, styles)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": tables.number, "score": score_text}
    title = title or evidence.config.get("name") or "Orrery run"
    return environment.get_template("page.html").render(title=title, sections=sections, styles=styles)


def _sections(evidence: Evidence, styles: Styles) -> list[Section]:
    return [
        *_score_sections(evidence, styles),
        _imagined(evidence, styles),
        _open_loop(evidence),
        *_model_gradients(evidence),
        *_finetuning(evidence),
        _losses(evidence),
        _extraction(evidence, styles),
        _data(evidence),
        _config(evidence),
        Section(
            "versions",
            "Hardware and versions",
            {"hardware": hardware(), "versions": tables.version_rows(evidence)},
        ),
        *_stage_sections(evidence),
    ]


def _score_sections(evidence: Evidence, styles: Styles) -> list[Section]:
    titles = {
        "result": "Result",
        "scores": "Scores by task",
        "algorithms": "Scores by algorithm",
        "seeds": "Scores by seed",
    }
    table = score_table(evidence)
    if table is None:
        return [Section(name, title, missing=reasons.no_scores(evidence)) for name, title in titles.items()]
    shown = {name: styles[name] for name in table.algorithms}
    charts = score_figures.draw_tasks(table.runs, evidence.tasks, shown)
    contents = {
        "result": _result(evidence, table),
        "scores": _scores(evidence, table),
        "algorithms": score_figures.draw_aggregates(table.overall, shown),
        "seeds": {"charts": charts, "keys": table.algorithms} if charts else {},
    }
    return [Section(name, title, contents[name], "" if contents[name] else NO_SCORE) for name, title in titles.items()]


def _result(evidence: Evidence, table: ScoreTable) -> dict[str, Any]:
    suites = evidence.summary.get("by_suite", {})
    protocol = evidence.summary.get("protocol", {})
    learned = [name for name in table.algorithms if name not in BASELINES]
    seeds = max((table.overall.get(name, {}).get("seeds", 0) for name in learned or table.algorithms), default=0)
    evaluated = sum(not row.skipped for row in table.rows)
    skipped = f" ({len(table.rows) - evaluated} more not evaluated)" if evaluated < len(table.rows) else ""
    episodes = protocol.get("episodes", "an unknown number of")
    return {
        "table": table,
        "learned": learned,
        "suites": suites if len(suites) > 1 else {},
        "protocol": f"{counted(evaluated, 'task')}{skipped}, seeds per task: {seeds}, episodes per seed: {episodes}. "
        f"Scores are of the last iterate, acting deterministically. Report written on {hardware_line()}.",
        "interval": protocol.get("interval", ""),
    }


def _scores(evidence: Evidence, table: ScoreTable) -> dict[str, Any]:
    failures = evidence.summary.get("failures", [])
    errors = Counter((row["algorithm"], row["task"], row["error"]) for row in failures)
    return {
        "table": table,
        "kinds": tables.score_kinds(evidence),
        "errors": [(*key, count) for key, count in errors.items()],
        "references": evidence.summary.get("references", {}),
        "runs": table.runs.to_dict("records"),
    }


def _imagined(evidence: Evidence, styles: Styles) -> Section:
    name, title = "imagined", "Imagined and real return"
    runs = tables.imagined_runs(evidence)
    if runs.empty:
        return Section(name, title, missing=reasons.no_imagination(evidence))
    content = {
        "charts": score_figures.draw_imagined(runs, styles),
        "keys": list(dict.fromkeys(runs["algorithm"])),
        "rows": runs.groupby(["task", "algorithm"], sort=False).mean(numeric_only=True).reset_index(),
        "exploiting": evidence.summary.get("exploiting", []),
    }
    return Section(name, title, content)


def _open_loop(evidence: Evidence) -> Section:
    name, title = "open_loop", "Open-loop prediction of reward"
    if evidence.validation is None or evidence.predicts_no_reward:
        return Section(name, title, missing=reasons.no_validation(evidence))
    content = {
        "rows": tables.open_loop_rows(evidence.validation, evidence.tasks),
        "charts": training_figures.draw_open_loop(evidence.validation, evidence.tasks),
        "colours": training_figures.horizon_colours(evidence.validation),
        "weak": WEAK_R2,
        "floor": training_figures.R2_FLOOR,
        "step": int(evidence.validation["step"].max()),
    }
    return Section(name, title, content)


def _model_gradients(evidence: Evidence) -> list[Section]:
    """Shown only if the stage `gradients` ran."""
    if evidence.model_gradients is None:
        return []
    content = {
        "rows": evidence.model_gradients.to_dict("records"),
        "charts": gradient_figures.draw_growth(evidence.model_gradients, evidence.tasks),
        "colours": {"state": gradient_figures.STATE, "return": gradient_figures.RETURN},
        "weak": WEAK_R2,
    }
    return [Section("model_gradients", "Gradients through the world model", content)]


def _finetuning(evidence: Evidence) -> list[Section]:
    """Shown only for finetuned models; for the others nothing is missing."""
    if evidence.forgetting is None and not evidence.added:
        return []
    rows = [] if evidence.forgetting is None else tables.forgetting_rows(evidence.forgetting)
    return [Section("finetuning", "Finetuning", {"rows": rows, "added": evidence.added, "worse": WORSE_R2})]


def _losses(evidence: Evidence) -> Section:
    name, title = "losses", "Losses of the world model"
    if evidence.training is None:
        return Section(name, title, missing=reasons.no_losses(evidence))
    return Section(name, title, training_figures.draw_losses(evidence.training))


def _extraction(evidence: Evidence, styles: Styles) -> Section:
    name, title = "extraction", "Extraction"
    if evidence.extraction is None:
        return Section(name, title, missing=reasons.no_curves(evidence))
    content = {
        "charts": training_figures.draw_extraction(evidence.extraction, evidence.tasks, evidence.policies, styles),
        "keys": list(dict.fromkeys(evidence.extraction["algorithm"])),
    }
    return Section(name, title, content)


def _data(evidence: Evidence) -> Section:
    rows = tables.data_rows(evidence)
    return Section("data", "Data", rows, missing="" if rows else reasons.no_input(evidence, "store"))


def _config(evidence: Evidence) -> Section:
    if not evidence.config:
        return Section("config", "Configuration", missing="the report was not written by a run")
    return Section("config", "Configuration", yaml.safe_dump(dict(evidence.config), sort_keys=False))


def _stage_sections(evidence: Evidence) -> list[Section]:
    missing = "" if evidence.records else "no stage has finished"
    rows = tables.stage_rows(evidence)
    total = tables.total_time(evidence.records)
    return [
        Section("stages", "Stages", {"rows": rows, "total": total}, missing),
        Section("lineage", "Lineage", rows, missing),
    ]
