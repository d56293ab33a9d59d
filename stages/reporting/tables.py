"""Rows of the report's tables except scores: data, open-loop error, imagined returns, stages, versions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ...pipeline.artifact import package_versions
from ...pipeline.wording import counted
from .evidence import Evidence


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


def duration(seconds: float) -> str:
    """Format as `8.2 s`, `3 min 05 s` or `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


@dataclass(frozen=True)
class DataRow:
    """One task's data."""

    task: str
    behaviour: str
    episodes: int
    transitions: int
    return_mean: float
    return_std: float
    return_max: float
    success_rate: float | None
    source: str
    warnings: Sequence[str]


def data_rows(evidence: Evidence) -> list[DataRow]:
    """Rows from the store, including the count of episodes that failed during collection."""
    rows = []
    for entry in evidence.data:
        source, collected = entry.get("source", {}), evidence.collected.get(entry["task"], {})
        findings = entry.get("findings", {})
        warnings = [*findings.get("warnings", []), *findings.get("notes", [])]
        if failed := collected.get("failed_episodes"):
            warnings.append(
                f"{counted(failed, 'episode')} failed during collection; failed episodes are not in the data"
            )
        rows.append(
            DataRow(
                **{name: entry[name] for name in ("task", "behaviour", "episodes", "transitions")},
                **{name: entry[name] for name in ("return_mean", "return_std", "return_max", "success_rate")},
                source=f"{source.get('format', 'unknown')}: {source.get('id') or source.get('path') or 'unknown'}",
                warnings=warnings,
            )
        )
    return rows


def open_loop_rows(validation: pd.DataFrame, tasks: Sequence[str]) -> list[tuple[str, list[float]]]:
    """(task, R^2 by horizon) at the last validation; NaN if the held-out reward is constant."""
    last = validation[validation["step"] == validation["step"].max()]
    table = last.pivot_table(index="task", columns="horizon", values="reward_r2", dropna=False)
    return [(task, [float(value) for value in table.loc[task]]) for task in tasks if task in table.index]


@dataclass(frozen=True)
class ForgettingRow:
    """Open-loop prediction of a task's reward before and after finetuning, at the longest horizon measured."""

    task: str
    new: bool
    horizon: int
    before: float
    after: float


def forgetting_rows(forgetting: pd.DataFrame) -> list[ForgettingRow]:
    """Old tasks first; one row per model if there is one model per new task."""
    last = forgetting[forgetting["horizon"] == forgetting["horizon"].max()].sort_values("new", kind="stable")
    columns = ["task", "new", "horizon", "reward_r2_before", "reward_r2_after"]
    return [ForgettingRow(*row) for row in last[columns].itertuples(index=False)]


def imagined_runs(evidence: Evidence) -> pd.DataFrame:
    """Imagined and real return per episode, for all runs with both."""
    columns = ["algorithm", "task", "seed", "imagined_return", "real_return"]
    return pd.DataFrame(evidence.summary.get("imagined", []), columns=columns).dropna()


def score_kinds(evidence: Evidence) -> list[str]:
    """Definition of the score, by suite."""
    said = {
        "return_per_1000": "return / 1000",
        "success": "success rate (success at any step of the episode)",
        "normalised": "(return − random) / (expert − random)",
    }
    kinds = dict.fromkeys(
        (name.split("/", 1)[0], said.get(spec["score_kind"], spec["score_kind"]))
        for name, spec in evidence.specs.items()
    )
    return [f"{suite}: {kind}" for suite, kind in kinds]


@dataclass(frozen=True)
class StageRow:
    """One stage of the run, or an artifact from outside."""

    name: str
    kind: str
    time: str
    created: str
    summary: str
    key: str
    digest: str
    inputs: Sequence[str]


def stage_rows(evidence: Evidence) -> list[StageRow]:
    """In the order they ran, each with its inputs."""
    makers = {record["digest"]: name for name, record in evidence.records.items()}
    rows = []
    for name, record in evidence.records.items():
        inputs = [
            f"{input_name}: {makers.get(one['digest'], one['path'])} {one['digest'][:12]}"
            for input_name, many in record["inputs"].items()
            for one in many
        ]
        rows.append(
            StageRow(
                name,
                record["kind"],
                duration(record["seconds"]),
                record["created"],
                record["summary"],
                record["key"][:12],
                record["digest"][:12],
                inputs,
            )
        )
    return rows


def total_time(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the time that all stages took together."""
    return duration(sum(record["seconds"] for record in records.values()))


def version_rows(evidence: Evidence) -> list[tuple[str, str]]:
    """(package, version) here, and the versions of stages that ran with others."""
    rows = []
    for package, version in package_versions().items():
        others = [
            f"{record['versions'][package]} in {name}"
            for name, record in evidence.records.items()
            if record["versions"].get(package, version) != version
        ]
        rows.append((package, f"{version} ({'; '.join(others)})" if others else version))
    return rows
