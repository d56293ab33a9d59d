"""Estimated values of policies: the files of the stage fqe, and which policy they select. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from ...pipeline.reading import read_csv

ESTIMATES_FILE = "estimates.csv"
SELECTION_FILE = "selection.json"
EXPLOITED = 0.3
"""By which share of the largest value in size an imagined value may lie above the data's estimate without being
reported; it must lie above the interval as well."""


@dataclass(frozen=True)
class ValueEstimate:
    """What the data says of one policy. Values are discounted returns from the data's first states, environment
    units."""

    algorithm: str
    task: str
    seed: int
    value: float
    low: float
    """Ends of the 95% interval over resampled episodes."""
    high: float
    data: float
    """Of the recorded episodes."""
    imagined: float | None = None
    """What the world model says of the policy; None where it was not extracted from one."""

    @classmethod
    def of_critics(
        cls, algorithm: str, task: str, seed: int, values: np.ndarray, data: float, imagined: float | None
    ) -> ValueEstimate:
        """From the value that each of K critics gives, [K]: their mean, with the spread of a critic as its standard
        error, since each has seen a resample of the episodes (bootstrap)."""
        from scipy.stats import t

        value = float(values.mean())
        half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1))
        return cls(algorithm, task, seed, value, value - half, value + half, data, imagined)

    @property
    def overestimated(self) -> bool:
        """Whether the model promises far more than the data does."""
        if self.imagined is None or self.imagined <= self.high:
            return False
        largest = max(abs(self.imagined), abs(self.value), abs(self.data))
        return self.imagined - self.value > EXPLOITED * largest


def select(estimates: Iterable[ValueEstimate]) -> dict[str, ValueEstimate]:
    """By task the policy to deploy: of the algorithm with the largest mean over seeds, the seed with the largest
    value. Seeds of one algorithm differ less than errors of single estimates do."""
    by_task: dict[str, dict[str, list[ValueEstimate]]] = {}
    for one in estimates:
        by_task.setdefault(one.task, {}).setdefault(one.algorithm, []).append(one)
    selected = {}
    for task, algorithms in by_task.items():
        best = max(algorithms.values(), key=lambda own: np.mean([one.value for one in own]))
        selected[task] = max(best, key=lambda one: one.value)
    return selected


def rank_correlations(
    estimates: Iterable[ValueEstimate], real: Mapping[tuple[str, str, int], float]
) -> dict[str, float]:
    """By task Spearman's correlation of estimated and real returns over its policies; tasks with fewer than three, or
    with returns that are all alike, are left out.

    Args:
        real: mean return by (algorithm, task, seed).
    """
    from scipy.stats import spearmanr

    pairs: dict[str, list[tuple[float, float]]] = {}
    for one in estimates:
        if (earned := real.get((one.algorithm, one.task, one.seed))) is not None:
            pairs.setdefault(one.task, []).append((one.value, earned))
    found = {}
    for task, own in pairs.items():
        values, returns = np.array(own).T
        if len(own) >= 3 and np.ptp(values) > 0 and np.ptp(returns) > 0:
            found[task] = float(spearmanr(values, returns).statistic)
    return found


def read_estimates(path: Path) -> list[ValueEstimate]:
    """The rows of an `estimates.csv`; raises a StageError where it is damaged."""
    columns = [one.name for one in fields(ValueEstimate)]
    table = read_csv(path, columns)[columns]
    return [ValueEstimate(**row) for row in table.astype(object).where(table.notna(), None).to_dict("records")]
