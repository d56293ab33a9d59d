"""Statistics over runs: the interquartile mean, and intervals by the stratified bootstrap.

Follows Agarwal et al. (2021, arXiv 2108.13264) and their rliable, whose current release cannot be imported beside
pandas 3. A run is one (task, seed); its score is the mean over its evaluation episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np


def mean(values: np.ndarray) -> float:
    """Arithmetic mean of all runs."""
    return float(np.mean(values))


def iqm(values: np.ndarray) -> float:
    """Interquartile mean: the mean without the lowest and the highest quarter of all runs, rounded down to whole runs.

    Args:
        values: [N], finite, N >= 1.
    """
    ordered = np.sort(np.ravel(values))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def stratified_bootstrap(
    scores: Mapping[str, np.ndarray],
    statistic: Callable[[np.ndarray], float],
    *,
    reps: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile interval of a statistic over all runs, resampling runs with replacement within each task.

    It covers what another draw of seeds could have given on THESE tasks: training seeds and evaluation episodes
    together. It does not cover other tasks, other data, or another world model if the runs share one. With few seeds it
    is too narrow (2 seeds can only be resampled in 3 ways).

    Args:
        scores: task -> [seeds], finite.
        statistic: of the pooled runs [N].
        reps: resamples.
        level: share of resamples inside the interval.
        seed: of the resampling.

    Returns:
        (low, high), or None where no task has two runs: one run says nothing about the spread between runs.
    """
    groups = [np.asarray(group, np.float64) for group in scores.values() if len(group)]
    if all(len(group) < 2 for group in groups):
        return None
    rng = np.random.default_rng(seed)
    resampled = np.concatenate([group[rng.integers(len(group), size=(reps, len(group)))] for group in groups], axis=1)
    low, high = np.quantile([statistic(row) for row in resampled], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def t_interval(values: np.ndarray, *, level: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of the mean of a few independent values, mean -+ t s / sqrt(N).

    For whole pipelines, of which there are a few: a bootstrap of N values cannot be wider than their range, which for
    N = 2 covers the true mean of a normal distribution half of the time.

    Args:
        values: [N], finite.
        level: probability that the interval covers the mean, for normally distributed values.

    Returns:
        (low, high), or None for fewer than two values.
    """
    if len(values) < 2:
        return None
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean(values) - half, mean(values) + half
