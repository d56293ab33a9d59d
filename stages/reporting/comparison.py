"""Scores and settings of any runs side by side, for `orrery compare`. The stage `compare` is about a study."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...pipeline.config.help import shortened
from ...pipeline.config.load import dotted_keys
from ...pipeline.errors import ConfigError, StageError
from ...pipeline.status import read_run_file
from ...pipeline.tables import table
from ...pipeline.wording import counted
from ..evaluation.scores import Estimate, returns_text
from ..evaluation.statistics import INTERVAL_METHOD, mean, mean_interval
from .results import ReportData, baselines_last
from .run_list import find_runs
from .study_results import pool


def compare_runs(folders: Sequence[Path]) -> dict[str, Any]:
    """Runs, their scores by task and algorithm with 95% intervals, mean scores over the tasks that all of them have,
    settings that differ, and notes on what makes scores hard to compare.

    Args:
        folders: of runs; a folder of several, such as a study, stands for all of them.
    Raises:
        StageError: there is no run in one of them, or no run has scores.
    """
    runs = _named([run for folder in folders for run in _runs_in(folder)])
    data = {name: ReportData.of_run(folder) for name, folder in runs.items()}
    scored = {name: one for name, one in data.items() if one.scores is not None}
    if not scored:
        raise StageError(
            f"no scores to compare: stage evaluate is not complete in {', '.join(map(str, runs.values()))}. "
            "orrery status RUN_DIR shows how far a run is"
        )
    notes = [f"{name} has no scores: stage evaluate is not complete" for name in data if name not in scored]
    scores = [{"run": name, **row} for name, one in scored.items() for row in _task_rows(one)]
    means = [row for algorithm in _algorithms(scored) for row in _mean_rows(algorithm, scored)]
    records = {name: read_run_file(folder) for name, folder in runs.items()}
    return {
        "runs": [
            {"run": name, "folder": str(runs[name]), "experiment": one["experiment"]} for name, one in records.items()
        ],
        "scores": scores,
        "mean scores": means,
        "settings": _different_settings(records),
        "notes": notes + _reference_notes(scored),
    }


def render(compared: Mapping[str, Any]) -> RenderableType:
    """Tables with a column per run: scores, and settings that differ."""
    names = [one["run"] for one in compared["runs"]]
    algorithms = baselines_last([row["algorithm"] for row in compared["scores"]])
    rows = _pivot(sorted(compared["scores"], key=lambda row: algorithms.index(row["algorithm"])), ("algorithm", "task"))
    for row in _pivot(compared["mean scores"], ("algorithm", "tasks")):
        rows.append({**row, "task": f"mean of {counted(row['tasks'], 'task')}"})
    rows.sort(key=lambda row: algorithms.index(row["algorithm"]))
    settings = [{"setting": row["setting"], **row["values"]} for row in compared["settings"]]
    notes = [*compared["notes"], f"score [interval]: {INTERVAL_METHOD}"]
    return Group(
        _table(["algorithm", "task", *names], rows),
        Text(""),
        _table(["setting", *names], settings) if settings else Text("no setting differs"),
        Text(""),
        Text("\n".join(notes)),
    )


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Table:
    made = table(*columns)
    for row in rows:
        made.add_row(*(Text(row.get(column, "-")) for column in columns))
    return made


def _runs_in(folder: Path) -> list[Path]:
    if not (found := list(find_runs(folder)) if folder.is_dir() else []):
        raise StageError(f"{folder} is not the folder of a run or of runs; orrery ls lists runs")
    return found


def _named(folders: Sequence[Path]) -> dict[str, Path]:
    """Runs by the shortest end of their path that tells them apart."""
    paths = [folder.resolve() for folder in dict.fromkeys(folders)]
    if len(set(paths)) < 2:
        raise ConfigError(f"expected at least two different runs, found {paths[0]}; orrery inspect shows a single run")
    depth = next(n for n in itertools.count(1) if len({path.parts[-n:] for path in paths}) == len(paths))
    return {"/".join(path.parts[-depth:]): path for path in paths}


def _algorithms(data: Mapping[str, ReportData]) -> list[str]:
    return baselines_last([name for one in data.values() for name in one.algorithms])


def _task_rows(data: ReportData) -> list[dict[str, Any]]:
    assert data.scores is not None
    return [
        {"algorithm": algorithm, "task": task, **pool(runs), "seeds": int(runs["score"].notna().sum())}
        for (algorithm, task), runs in data.scores.groupby(["algorithm", "task"], sort=False)
    ]


def _mean_rows(algorithm: str, data: Mapping[str, ReportData]) -> list[dict[str, Any]]:
    """The mean score of each run that has the algorithm, over the tasks that all of these have scores of."""
    by_run = {}
    for name, one in data.items():
        assert one.scores is not None
        own = one.scores[one.scores["algorithm"] == algorithm].dropna(subset="score")
        if not own.empty:
            by_run[name] = {str(task): runs["score"].to_numpy() for task, runs in own.groupby("task", sort=False)}
    common = set.intersection(*map(set, by_run.values())) if by_run else set()
    rows = []
    for name, by_task in by_run.items() if common else ():
        scores = {task: runs for task, runs in by_task.items() if task in common}
        low, high = mean_interval(scores) or (None, None)
        rows.append(
            {"run": name, "algorithm": algorithm, "tasks": len(common), "score": mean(scores), "low": low, "high": high}
        )
    return rows


def _different_settings(records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Settings of the runs, and of stages that one of them lists, whose values are not the same in all."""
    stages = {one["stage"] for record in records.values() for one in record["stages"]}
    every = {one for record in records.values() for one, value in record["config"].items() if isinstance(value, dict)}
    idle = every - stages - {"inputs"}
    configs = {name: _settings(record["config"], idle) for name, record in records.items()}
    rows = []
    for key in dict.fromkeys(key for config in configs.values() for key in config if key != "name"):
        values = {name: shortened(config[key]) if key in config else "-" for name, config in configs.items()}
        if any(config.get(key) != next(iter(configs.values())).get(key) for config in configs.values()):
            rows.append({"setting": key, "values": values})
    return rows


def _settings(config: Mapping[str, Any], idle: Collection[str]) -> dict[str, Any]:
    """By dotted key, without stages that are idle and what the others take from the run."""
    return {
        key: value
        for key, value in dotted_keys(config)
        if key.partition(".")[0] not in idle
        and value != {}
        and not ("." in key and key.split(".")[1:] == [last := key.rpartition(".")[2]] and config.get(last) == value)
    }


def _reference_notes(data: Mapping[str, ReportData]) -> list[str]:
    """Tasks whose normalised scores have other references in other runs."""
    ends: dict[str, set[tuple[Any, Any]]] = {}
    for one in data.values():
        for task, reference in one.summary.references.items():
            ends.setdefault(task, set()).add((reference["random"], reference["expert"]))
    different = [task for task, found in ends.items() if len(found) > 1]
    if not different:
        return []
    return [
        f"scores of {', '.join(different)} are normalised by different references, so compare their returns; "
        "evaluate one run with inputs.references=OTHER_RUN/evaluate to use the same"
    ]


def _pivot(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each combination of the keys, with the score of each run under its name."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        cells = found.setdefault(tuple(row[key] for key in keys), {key: row[key] for key in keys})
        cells[row["run"]] = _cell(row)
    return list(found.values())


def _cell(row: Mapping[str, Any]) -> str:
    if row["score"] == row["score"]:
        return str(Estimate(row["score"], row["low"], row["high"]))
    return returns_text([row["return_mean"]] if row["return_mean"] == row["return_mean"] else [])
