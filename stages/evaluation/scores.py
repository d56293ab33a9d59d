"""From evaluation episodes to scores: one row per (algorithm, task, seed), and a summary per algorithm.

Failed episodes are excluded from their row and counted. A row without a completed episode has no score (NaN) and is
listed in the summary as unscored. Imports neither simulator nor torch.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.schema import TaskSpec
from ...pipeline.seeding import derive_seed
from .statistics import iqm, iqm_interval, mean, mean_interval


@dataclass(frozen=True)
class EpisodeRow:
    """One evaluation episode; a row of episodes.csv."""

    algorithm: str
    task: str
    seed: int
    """The policy's seed."""
    episode: int
    episode_seed: int
    """The environment's seed; the same for every algorithm."""
    return_: float
    length: int
    """Number of steps."""
    success: bool | None
    """Success after any step."""
    success_last: bool | None
    error: str | None


@dataclass(frozen=True)
class ScoreRow:
    """One run of one algorithm on one task; a row of scores.csv."""

    algorithm: str
    task: str
    seed: int
    episodes: int
    """Completed episodes."""
    return_mean: float
    return_std: float
    """Population standard deviation over episodes."""
    success_rate: float | None
    score: float


def with_references(
    spec: TaskSpec,
    random_returns: Sequence[float],
    data: Mapping[str, Any] | None,
    earlier: Mapping[str, Any] | None = None,
) -> tuple[TaskSpec, dict[str, Any] | None]:
    """The spec with the references of its normalised score filled in, and where they came from.

    Where the task states none, 0 is this evaluation's random policy and 1 the best episode of the dataset. `problem`
    says why the task has no score all the same; it is empty if it has. The second value is None for other kinds of
    score.

    Args:
        earlier: what this function returned in another evaluation whose scores these are to be compared with.
    """
    if spec.score_kind != "normalised":
        return spec, None
    if earlier is not None:
        return replace(spec, score_random=earlier["random"], score_expert=earlier["expert"]), dict(earlier)
    source = {"random_from": "task", "expert_from": "task"}
    if spec.score_random is None:
        source["random_from"] = "mean return of this evaluation's random policy"
        spec = replace(spec, score_random=float(np.mean(random_returns)) if random_returns else None)
    if spec.score_expert is None:
        source["expert_from"] = "best episode of the dataset"
        spec = replace(spec, score_expert=None if data is None else data.get("return_max"))
    return spec, {"random": spec.score_random, "expert": spec.score_expert, **source, "problem": spec.score_problem}


def score_run(spec: TaskSpec, run: tuple[str, str, int], episodes: Iterable[EpisodeRow]) -> ScoreRow:
    """Score one run from its episodes."""
    completed = [row for row in episodes if row.error is None]
    if not completed:
        return ScoreRow(*run, episodes=0, return_mean=math.nan, return_std=math.nan, success_rate=None, score=math.nan)
    returns = np.array([row.return_ for row in completed])
    success = [row.success for row in completed if row.success is not None]
    rate = float(np.mean(success)) if success else None
    average = float(returns.mean())
    return ScoreRow(*run, len(completed), average, float(returns.std()), rate, spec.score(average, rate))


def score_data(spec: TaskSpec, data: Mapping[str, Any]) -> ScoreRow:
    """Score the behaviour that collected a dataset, from the store's statistics."""
    average, rate = float(data["return_mean"]), data.get("success_rate")
    score = spec.score(average, rate)
    return ScoreRow("behaviour", spec.name, 0, int(data["episodes"]), average, float(data["return_std"]), rate, score)


def summarise(rows: Sequence[ScoreRow], episodes: Sequence[EpisodeRow]) -> dict[str, dict[str, Any]]:
    """Mean and IQM with 95% intervals for each algorithm, over tasks with a scored run."""
    summary: dict[str, dict[str, Any]] = {}
    for algorithm in dict.fromkeys(row.algorithm for row in rows):
        own = [row for row in rows if row.algorithm == algorithm]
        runs: dict[str, list[float]] = {}
        for row in own:
            if math.isfinite(row.score):
                runs.setdefault(row.task, []).append(row.score)
        scores = {task: np.array(values) for task, values in runs.items()}
        summary[algorithm] = {
            "mean": _estimate(mean(scores), mean_interval(scores)) if scores else _estimate(None, None),
            "iqm": _estimate(iqm(scores), iqm_interval(scores)) if scores else _estimate(None, None),
            "tasks": len(scores),
            "of_tasks": len({row.task for row in own}),
            "seeds": max((len(values) for values in scores.values()), default=0),
            "failed_episodes": sum(row.algorithm == algorithm and row.error is not None for row in episodes),
            "returns": _returns(own),
            "unscored": [f"{row.task} seed {row.seed}" for row in own if not math.isfinite(row.score)],
        }
    return summary


def _returns(rows: Sequence[ScoreRow]) -> dict[str, float]:
    """Mean return by task, over its runs with a completed episode."""
    runs: dict[str, list[float]] = {}
    for row in rows:
        if math.isfinite(row.return_mean):
            runs.setdefault(row.task, []).append(row.return_mean)
    return {task: float(np.mean(returns)) for task, returns in runs.items()}


def score_text(algorithm: Mapping[str, Any], statistic: str = "mean") -> str:
    """`0.81 [0.77, 0.85]` of what `summarise` says of an algorithm, and `no score, return 812` where it has none.

    Where only some tasks have a score: `0.81 [0.77, 0.85] on 3 of 4 tasks`.

    Args:
        statistic: mean or iqm.
    """
    estimate = algorithm.get(statistic)
    if estimate is None or estimate["value"] is None:
        return returns_text(list(algorithm.get("returns", {}).values()))
    scored, of_tasks = algorithm.get("tasks", 0), algorithm.get("of_tasks", 0)
    partly = f" on {scored} of {of_tasks} tasks" if scored < of_tasks else ""
    return f"{interval_text(estimate)}{partly}"


def returns_text(returns: Sequence[float]) -> str:
    """What stands where no task has a score: `no score, return 812`, or the range over tasks, whose units differ."""
    if not returns:
        return "no score"
    low, high = min(returns), max(returns)
    return f"no score, return {low:.4g}" if len(returns) == 1 else f"no score, returns {low:.4g} to {high:.4g}"


def interval_text(estimate: Mapping[str, float | None]) -> str:
    """`0.81 [0.77, 0.85]` of a value, without the brackets where it has no interval."""
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    assert value is not None
    if low is None or high is None:
        return two_decimals(value)
    return f"{two_decimals(value)} [{two_decimals(low)}, {two_decimals(high)}]"


def two_decimals(value: float) -> str:
    """Format with two decimals, and zero without a sign."""
    return f"{round(value, 2) + 0.0:.2f}"


def _estimate(value: float | None, interval: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {"value": value, "low": low, "high": high}


def write_csv(path: Path, row_type: type[EpisodeRow] | type[ScoreRow], rows: Sequence[EpisodeRow | ScoreRow]) -> None:
    """Write rows under their field names; what is unknown or NaN is left empty, which pandas reads as NaN."""
    names = [field.name for field in fields(row_type)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([name.rstrip("_") for name in names])
        for row in rows:
            values = asdict(row)
            writer.writerow(["" if _unknown(values[name]) else values[name] for name in names])


def _unknown(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def evaluation_seed(seed: int, task: str, policy_seed: int, episode: int) -> int:
    """Environment seed of an evaluation episode: 2**31 and above, where collected data has none."""
    return 2**31 + derive_seed("evaluate", seed, task, policy_seed, episode) % 2**31


EXPLOITED = 0.3
"""Share of an imagined return that the environment may withhold before a policy is said to exploit its model."""


def exploiting(imagined: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Where policies exploit errors of their world model: mean over seeds, largest excess first.

    An algorithm is listed for a task if its imagined return exceeds the real one by more than EXPLOITED of the larger
    of the two in size. Rows as in `imagined` of summary.json, without those that lack either return.
    """
    runs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in imagined:
        if row["imagined_return"] is not None and row["real_return"] is not None:
            runs.setdefault((row["algorithm"], row["task"]), []).append((row["imagined_return"], row["real_return"]))
    found = []
    for (algorithm, task), pairs in runs.items():
        promised, real = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        share = (promised - real) / (max(abs(promised), abs(real)) or 1)
        if share > EXPLOITED:
            found.append({"algorithm": algorithm, "task": task, "imagined": promised, "real": real, "share": share})
    return sorted(found, key=lambda one: -one["share"])
