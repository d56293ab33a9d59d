"""The score table: one cell per task and algorithm, with marks for failures.

Failures are never left out: a task without an environment, a run without a score and an episode that raised all appear
in the table.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from ...pipeline.wording import counted
from ..evaluation.config import BASELINES
from ..evaluation.scores import AlgorithmScores, returns_text, two_decimals
from .results import ReportData

FAILING_SCORE = 0.1
"""Learned policies below this score are marked as failing."""

BELOW_DATA = "below data"


@dataclass(frozen=True)
class ScoreCell:
    """One algorithm on one task."""

    score: float
    """Mean over seeds; NaN if no run has a score."""
    spread: float | None
    """Sample standard deviation over seeds; None with fewer than two seeds."""
    return_mean: float
    """Mean over seeds, in the environment's units; NaN if no episode was completed."""
    marks: tuple[str, ...]
    """Problems of this score, in words."""

    @property
    def text(self) -> str:
        if math.isnan(self.score):
            return returns_text([] if math.isnan(self.return_mean) else [self.return_mean])
        return two_decimals(self.score) if self.spread is None else f"{two_decimals(self.score)} ± {self.spread:.2f}"

    @property
    def failing(self) -> bool:
        """Whether it failed, as opposed to scoring below the data."""
        return any(mark != BELOW_DATA for mark in self.marks)


@dataclass(frozen=True)
class TaskScores:
    """One row of the score table."""

    task: str
    cells: Mapping[str, ScoreCell]
    """By algorithm; without algorithms that were not evaluated on the task."""
    skipped: str = ""
    """Why the task was not evaluated at all."""


@dataclass(frozen=True)
class ScoreTable:
    """Scores of every task and algorithm."""

    algorithms: Sequence[str]
    rows: Sequence[TaskScores]
    overall: Mapping[str, AlgorithmScores]
    """By algorithm, over all tasks."""
    runs: pd.DataFrame
    """The rows of scores.csv."""

    def num_failing(self, algorithm: str) -> int:
        """Return the number of tasks on which the algorithm failed."""
        return sum(row.cells[algorithm].failing for row in self.rows if algorithm in row.cells)

    def num_below_data(self, algorithm: str) -> int:
        """Return the number of tasks on which it scores below the behaviour that collected the data."""
        return sum(BELOW_DATA in row.cells[algorithm].marks for row in self.rows if algorithm in row.cells)


def score_table(data: ReportData) -> ScoreTable | None:
    """Tabulate the scores; None if nothing was evaluated."""
    if data.scores is None:
        return None
    failed = Counter((failure.algorithm, failure.task) for failure in data.summary.failures)
    skipped = data.summary.skipped
    groups = dict(list(data.scores.groupby(["algorithm", "task"])))
    algorithms = [name for name in data.algorithms if any(key[0] == name for key in groups)]
    named = {entry["task"] for entry in data.policies}
    rows = []
    for task in data.tasks:
        behaviour = float(groups["behaviour", task]["score"].mean()) if ("behaviour", task) in groups else math.nan
        cells = {}
        for name in algorithms:
            if (name, task) in groups:
                runs = groups[name, task]
                values = runs["score"].dropna()
                score = float(values.mean()) if len(values) else math.nan
                spread = float(values.std(ddof=1)) if len(values) > 1 else None
                marks = _marks(name, score, behaviour, len(runs) - len(values), failed[name, task])
                cells[name] = ScoreCell(score, spread, float(runs["return_mean"].mean()), marks)
        if task not in skipped and not cells and named and task not in named:
            continue  # a task of the model for which no policies were requested
        reason = skipped.get(task, "" if cells else "it was not part of the evaluation")
        rows.append(TaskScores(task, cells, reason))
    overall = {name: data.summary.algorithms.get(name, AlgorithmScores()) for name in algorithms}
    return ScoreTable(algorithms, rows, overall, data.scores)


def _marks(algorithm: str, score: float, behaviour: float, unscored: int, failed: int) -> tuple[str, ...]:
    marks = []
    if failed:
        marks.append(f"{counted(failed, 'failed episode')}")
    if unscored:
        marks.append(f"{counted(unscored, 'run')} without a score")
    if algorithm not in BASELINES:
        if score < FAILING_SCORE:
            marks.append(f"below {FAILING_SCORE:g}")
        if score < behaviour:
            marks.append(BELOW_DATA)
    return tuple(marks)


def markdown_table(table: ScoreTable) -> str:
    """Return the table in Markdown, with marks after the scores."""
    lines = [["task", *table.algorithms], ["---", *["---:"] * len(table.algorithms)]]
    for row in table.rows:
        if row.skipped:
            rest = [""] * (len(table.algorithms) - 1)
            lines.append([_plain(row.task), _plain(f"not evaluated: {row.skipped}"), *rest])
            continue
        cells = [row.cells.get(name) for name in table.algorithms]
        texts = [
            "" if cell is None else f"{cell.text} ({', '.join(cell.marks)})" if cell.marks else cell.text
            for cell in cells
        ]
        lines.append([_plain(row.task), *texts])
    for label, statistic in (("mean [95%]", "mean"), ("IQM [95%]", "iqm")):
        values = [table.overall[name].text(statistic) for name in table.algorithms]
        lines.append([f"**{label}**", *[f"**{value}**" for value in values]])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _plain(text: str) -> str:
    """Escape text for a table cell: no bars, no line breaks."""
    return " ".join(text.replace("|", "\\|").split())
