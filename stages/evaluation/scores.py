"""From evaluation episodes to scores: one row per (algorithm, task, seed), and a summary per algorithm.

Failed episodes are excluded from their row and counted. A row without a completed episode has no score (NaN) and is
listed in the summary as unscored. Imports neither simulator nor torch.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.schema import TaskSpec
from ...datasets.store import TaskSummary
from ...pipeline.reading import read_made
from ...pipeline.seeding import derive_seed
from .statistics import iqm, iqm_interval, mean, mean_interval

SUMMARY_FILE = "summary.json"


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


def labelled_field(label: str) -> Any:
    """A field with the heading of its column in the report."""
    return field(metadata={"label": label})


@dataclass(frozen=True)
class ScoreRow:
    """One run of one algorithm on one task; a row of scores.csv, and of the report under the labels of the fields."""

    algorithm: str = labelled_field("Algorithm")
    task: str = labelled_field("Task")
    seed: int = labelled_field("Seed")
    episodes: int = labelled_field("Episodes")
    """Completed episodes."""
    return_mean: float = labelled_field("Return")
    return_std: float = labelled_field("± std")
    """Population standard deviation over episodes."""
    success_rate: float | None = labelled_field("Success rate")
    score: float = labelled_field("Score")


@dataclass(frozen=True)
class Estimate:
    """A score over tasks with its 95% interval."""

    value: float | None = None
    """None without any score."""
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """`0.81 [0.77, 0.85]`, without the brackets where there is no interval."""
        if self.value is None:
            return "no score"
        ends = "" if self.low is None or self.high is None else f"{two_decimals(self.low)}, {two_decimals(self.high)}"
        return f"{two_decimals(self.value)} [{ends}]" if ends else two_decimals(self.value)


@dataclass(frozen=True)
class AlgorithmScores:
    """One algorithm over the tasks of which a run has a score."""

    mean: Estimate = field(default_factory=Estimate)
    iqm: Estimate = field(default_factory=Estimate)
    tasks: int = 0
    """With a score."""
    of_tasks: int = 0
    seeds: int = 0
    """With a score, of the task that has most."""
    failed_episodes: int = 0
    returns: dict[str, float] = field(default_factory=dict)
    """Mean return by task, over its runs with a completed episode."""
    unscored: list[str] = field(default_factory=list)
    """Runs without a score."""

    def text(self, statistic: str = "mean") -> str:
        """`0.81 [0.77, 0.85]`, `0.81 [0.77, 0.85] on 3 of 4 tasks`, or `no score, return 812`.

        Args:
            statistic: mean or iqm.
        """
        estimate: Estimate = getattr(self, statistic)
        if estimate.value is None:
            return returns_text(list(self.returns.values()))
        return f"{estimate} on {self.tasks} of {self.of_tasks} tasks" if self.tasks < self.of_tasks else str(estimate)


@dataclass(frozen=True)
class Failure:
    """An evaluation episode that raised."""

    algorithm: str
    task: str
    seed: int
    episode: int
    error: str


@dataclass(frozen=True)
class ImaginedReturn:
    """Return per episode that the model promised a policy, and the real one.

    Not per decision: where tasks terminate, imagined and real episodes differ in length.
    """

    algorithm: str
    task: str
    seed: int
    imagined_return: float | None
    real_return: float | None


EXPLOITED = 0.3
"""By which share of a task's largest return an imagined return may exceed the real one without being reported."""


@dataclass(frozen=True)
class Exploiting:
    """An algorithm that the world model overestimates on a task; returns are means over seeds."""

    algorithm: str
    task: str
    imagined: float
    real: float
    share: float
    """Of the task's largest return in size, by which the imagined return exceeds the real one."""


@dataclass(frozen=True)
class Summary:
    """summary.json of an evaluation."""

    algorithms: dict[str, AlgorithmScores] = field(default_factory=dict)
    by_suite: dict[str, dict[str, AlgorithmScores]] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    references: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What 0 and 1 of normalised scores are, by task."""
    imagined: list[ImaginedReturn] = field(default_factory=list)
    exploiting: list[Exploiting] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Why a task was not evaluated."""
    failures: list[Failure] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Summary:
        """Of the evaluation in `folder`; raises StageError where it is missing or damaged."""
        return read_made(folder / SUMMARY_FILE, cls)


def with_references(
    spec: TaskSpec,
    random_returns: Sequence[float],
    data: TaskSummary | None,
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
        spec = replace(spec, score_expert=None if data is None else data.return_max)
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


def score_data(spec: TaskSpec, data: TaskSummary) -> ScoreRow:
    """Score the behaviour that collected a dataset, from the store's statistics."""
    average, rate = float(data.return_mean), data.success_rate
    score = spec.score(average, rate)
    return ScoreRow("behaviour", spec.name, 0, data.episodes, average, float(data.return_std), rate, score)


def summarise(rows: Sequence[ScoreRow], episodes: Sequence[EpisodeRow]) -> dict[str, AlgorithmScores]:
    """Mean and IQM with 95% intervals for each algorithm, over tasks with a scored run."""
    summary = {}
    for algorithm in dict.fromkeys(row.algorithm for row in rows):
        own = [row for row in rows if row.algorithm == algorithm]
        scores = _by_task(own, "score")
        summary[algorithm] = AlgorithmScores(
            mean=Estimate(mean(scores), *(mean_interval(scores) or ())) if scores else Estimate(),
            iqm=Estimate(iqm(scores), *(iqm_interval(scores) or ())) if scores else Estimate(),
            tasks=len(scores),
            of_tasks=len({row.task for row in own}),
            seeds=max((len(values) for values in scores.values()), default=0),
            failed_episodes=sum(row.algorithm == algorithm and row.error is not None for row in episodes),
            returns={task: float(np.mean(values)) for task, values in _by_task(own, "return_mean").items()},
            unscored=[f"{row.task} seed {row.seed}" for row in own if not math.isfinite(row.score)],
        )
    return summary


def _by_task(rows: Sequence[ScoreRow], column: str) -> dict[str, np.ndarray]:
    """Finite values of a column by task."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if math.isfinite(value := getattr(row, column)):
            values.setdefault(row.task, []).append(value)
    return {task: np.array(own) for task, own in values.items()}


def returns_text(returns: Sequence[float]) -> str:
    """What stands where no task has a score: `no score, return 812`, or the range over tasks, whose units differ."""
    if not returns:
        return "no score"
    low, high = min(returns), max(returns)
    return f"no score, return {low:.4g}" if len(returns) == 1 else f"no score, returns {low:.4g} to {high:.4g}"


def two_decimals(value: float) -> str:
    """Format with two decimals, and zero without a sign."""
    return f"{round(value, 2) + 0.0:.2f}"


def write_csv(path: Path, row_type: type[EpisodeRow] | type[ScoreRow], rows: Sequence[EpisodeRow | ScoreRow]) -> None:
    """Write rows under their field names; what is unknown or NaN is left empty, which pandas reads as NaN."""
    names = [one.name for one in fields(row_type)]
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


def exploiting(imagined: Iterable[ImaginedReturn], scores: Iterable[ScoreRow]) -> list[Exploiting]:
    """Where the world model overestimates policies: an imagined return that exceeds the real one by more than EXPLOITED
    of the task's largest return in size, imagined or real, by whatever algorithm or baseline of `scores`. One trained
    through the model exploits its errors; of another (bc) the model itself is wrong. Largest excess first; rows that
    lack either return are left out."""
    largest: dict[str, float] = {}
    for score in scores:
        largest[score.task] = max(largest.get(score.task, 0), abs(np.nan_to_num(score.return_mean)))
    runs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in imagined:
        if row.imagined_return is not None and row.real_return is not None:
            runs.setdefault((row.algorithm, row.task), []).append((row.imagined_return, row.real_return))
    found = []
    for run, pairs in runs.items():
        promised, real = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        share = (promised - real) / (max(abs(promised), abs(real), largest.get(run[1], 0)) or 1)
        found.append(Exploiting(*run, promised, real, share))
    return sorted((one for one in found if one.share > EXPLOITED), key=lambda one: -one.share)
