"""Statistics over runs: means, interquartile means, and their 95% intervals.

A run is one (task, seed); its score is the mean over its evaluation episodes. The interquartile mean (IQM) follows
Agarwal et al. (2021, arXiv 2108.13264) and their rliable, whose current release cannot be imported beside pandas 3.

Scores are given as task -> [seeds], finite. Every task weighs the same, whatever number of its runs has a score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Scores = Mapping[str, np.ndarray]
"""Task -> scores of its runs [seeds], finite, at least one."""


INTERVAL_METHOD = (
    "95%, Student's t over policy seeds, stratified by task; no interval with a single seed or without spread. They "
    "cover policy seeds only: not other data, another world model or other tasks"
)
"""Method and coverage of the intervals, for reports."""


def mean(scores: Scores) -> float:
    """Mean over tasks of each task's mean over its runs."""
    return float(np.mean([np.mean(runs) for runs in scores.values()]))


def iqm(scores: Scores) -> float:
    """Interquartile mean: the mean without the lowest and the highest quarter of all runs, rounded down to whole runs.

    Where tasks differ in their number of runs, a run weighs 1 / (runs of its task), and what is cut is that share of
    the weight.
    """
    runs = list(scores.values())
    return float(_trimmed_mean(np.concatenate(runs), _weights(runs), _cut(runs)))


def mean_interval(scores: Scores, *, level: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of the mean, for what other seeds could have given on THESE tasks.

    With n_k runs of task k, their sample variance s_k^2 and K tasks:

        interval = mean -+ t_q(df) * sqrt(sum_k V_k)            V_k = s_k^2 / (n_k K^2)
        df = (sum_k V_k)^2 / sum_k (V_k^2 / (n_k - 1))          (Satterthwaite; for one task n - 1)

    A task with one run says nothing about its own spread and is given the average of the other tasks'.
    Not covered: other tasks, other data, another world model where the runs share one, and seeds that fail so rarely
    that none of these runs did. The ends may lie outside the range of possible scores.

    Args:
        scores: task -> [seeds].
        level: probability that the interval covers, for normally distributed runs.

    Returns:
        (low, high), or None if the runs show no spread: one run per task, or runs that agree exactly.
    """
    spread = _spread(scores)
    return _t_interval(mean(scores), spread.variance, spread.degrees, level)


def iqm_interval(scores: Scores, *, level: float = 0.95, reps: int = 1000, seed: int = 0) -> tuple[float, float] | None:
    """The same for the interquartile mean, whose standard error is that of the rescaled bootstrap of Rao and Wu (1988).

    A resample draws n_k - 1 of the n_k runs of each task, with replacement. Deviations of resamples of n_k are too
    small: their mean has the variance (n_k - 1) / n_k * s_k^2 / n_k. Of n_k - 1 it is s_k^2 / n_k, as it must be. Few
    seeds have few different resamples, so the interval comes from Student's t, not from their percentiles.

    Args:
        scores: task -> [seeds].
        level: see `mean_interval`.
        reps: resamples.
        seed: of the resampling.

    Returns:
        As `mean_interval`.
    """
    spread = _spread(scores)
    runs = [np.asarray(own, np.float64) for own in scores.values()]
    rng = np.random.default_rng(seed)
    drawn = [own[rng.integers(len(own), size=(reps, max(len(own) - 1, 1)))] for own in runs]
    found = _trimmed_mean(np.concatenate(drawn, axis=1), _weights([one[0] for one in drawn]), _cut(runs))
    value = iqm(scores)
    return _t_interval(value, spread.borrowed * float(np.mean((found - value) ** 2)), spread.degrees, level)


@dataclass(frozen=True)
class _Spread:
    """What `mean_interval` says of the spread of runs within their tasks."""

    variance: float
    """Of the mean, sum_k V_k."""
    degrees: float
    borrowed: float
    """Variance with, over variance without, what tasks with one run are given."""


def _spread(scores: Scores) -> _Spread:
    repeated = [np.asarray(runs, np.float64) for runs in scores.values() if len(runs) > 1]
    n_k = np.array([len(runs) for runs in repeated])
    s2_k = np.array([runs.var(ddof=1) for runs in repeated])
    if not s2_k.any():
        return _Spread(0.0, 0.0, 1.0)
    own_k = s2_k / (n_k * len(scores) ** 2)
    V_k = own_k + (len(scores) - len(n_k)) / len(n_k) * s2_k / len(scores) ** 2
    degrees = V_k.sum() ** 2 / (V_k**2 / (n_k - 1)).sum()
    return _Spread(float(V_k.sum()), float(degrees), float(V_k.sum() / own_k.sum()))


def _t_interval(value: float, variance: float, degrees: float, level: float) -> tuple[float, float] | None:
    error = math.sqrt(variance)
    if error <= 1e-12 * max(abs(value), 1):  # rounding errors of runs that agree
        return None
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, degrees)) * error
    return value - half, value + half


def _weights(runs: Sequence[np.ndarray]) -> np.ndarray:
    """[N] weights of all runs, task after task: tasks weigh equally and sum to 1."""
    counts = np.array([len(own) for own in runs])
    return np.repeat(1 / (len(counts) * counts), counts)


def _cut(runs: Sequence[np.ndarray]) -> float:
    """Share of the runs that the IQM cuts on either side."""
    total = sum(map(len, runs))
    return total // 4 / total


def _trimmed_mean(values: np.ndarray, weights: np.ndarray, cut: float) -> np.ndarray:
    """Weighted mean of [..., N] without the share `cut` of the weight on either side."""
    order = np.argsort(values, axis=-1)
    end = np.cumsum(weights[order], axis=-1)
    kept = np.clip(end, cut, 1 - cut) - np.clip(end - weights[order], cut, 1 - cut)
    return (kept * np.take_along_axis(values, order, -1)).sum(-1) / kept.sum(-1)
