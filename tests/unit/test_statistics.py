"""The interquartile mean against scipy and by hand; intervals by hand, against scipy, and by what they cover."""

from functools import partial

import numpy as np
import pytest
from orrery.stages.evaluation.statistics import iqm, iqm_interval, mean, mean_interval
from scipy import stats


def by_task(values):
    """Scores of [tasks, seeds]."""
    return dict(enumerate(values))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 41])
@pytest.mark.parametrize("tasks", [1, 3])
def test_iqm_is_the_mean_trimmed_by_a_quarter(count, tasks):
    values = np.random.default_rng(count).normal(size=(tasks, count))
    assert iqm(by_task(values)) == pytest.approx(stats.trim_mean(values, 0.25, axis=None))


def test_iqm_by_hand():
    assert iqm({"a": np.array([100.0, 2.0, 1.0, -50.0])}) == 1.5
    assert iqm({"a": np.array([0.0, 9.0]), "b": np.array([3.0, 6.0])}) == 4.5


def test_tasks_weigh_alike_when_runs_fail():
    whole = {"a": np.array([1.0, 1.0, 1.0, 1.0]), "b": np.array([0.0, 0.0, 0.0, 0.0])}
    failed = {"a": np.array([1.0]), "b": np.array([0.0, 0.0, 0.0, 0.0])}
    assert mean(whole) == mean(failed) == 0.5
    assert iqm(whole) == pytest.approx(iqm(failed)) == 0.5
    # A run of a weighs 1/2, one of b 1/8; a fifth is cut on either side, one run of five.
    assert iqm({"a": np.array([1.0]), "b": np.array([0.1, 0.2, 0.3, 0.4])}) == pytest.approx(
        (0.05 * 0.2 + 0.125 * 0.3 + 0.125 * 0.4 + 0.3 * 1.0) / 0.6
    )


def test_the_interval_of_one_task_is_students():
    values = np.array([0.2, 0.5, 0.9])
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert mean_interval({"a": values}) == pytest.approx((expected.low, expected.high))


def test_the_interval_of_a_mean_over_tasks_is_welchs():
    """Twice the mean of a and -b is the difference of a and b, whose interval scipy knows."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=3), 4 * rng.normal(size=5)
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    low, high = mean_interval({"a": a, "b": -b})
    assert (2 * low, 2 * high) == pytest.approx((expected.low, expected.high))


def test_runs_are_compared_within_their_task_only():
    one, two = np.array([0.0, 0.1]), np.array([5.0, 5.1])
    low, high = mean_interval({"a": one, "b": two})
    shifted_low, shifted_high = mean_interval({"a": one, "b": two + 100})
    assert high - low == pytest.approx(shifted_high - shifted_low)
    # Half of the runs are those of b, whose quarter on top is one run.
    low, high = iqm_interval({"a": one, "b": two})
    assert high - low < 2


def test_the_interval_of_an_iqm_that_cuts_nothing_is_that_of_the_mean():
    values = {"a": np.array([0.2, 0.5, 0.9])}
    assert iqm_interval(values, reps=200_000) == pytest.approx(mean_interval(values), abs=0.01)


def test_a_task_with_one_run_takes_the_spread_of_the_others():
    runs = np.array([0.0, 0.2, 0.7])
    low, high = mean_interval({"a": runs, "b": np.array([0.4])})
    error = np.sqrt((runs.var(ddof=1) / 3 + runs.var(ddof=1)) / 4)
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 2) * error)


@pytest.mark.parametrize("interval", [mean_interval, iqm_interval])
def test_runs_that_show_no_spread_have_no_interval(interval):
    assert interval({"a": np.array([0.2]), "b": np.array([0.7])}) is None
    assert interval({"a": np.array([0.1, 0.1, 0.1]), "b": np.array([0.7] * 3)}) is None


def normal(rng, tasks):
    middle, spread = rng.uniform(0, 1, (tasks, 1)), 0.1 * np.exp(rng.normal(size=(tasks, 1)))
    return lambda shape: middle + spread * rng.normal(size=shape)


def clipped(rng, tasks):
    middle = rng.uniform(-0.2, 1.2, (tasks, 1))
    return lambda shape: np.clip(middle + 0.2 * rng.normal(size=shape), 0, 1)


def success(rng, tasks):
    """Success rates over 10 episodes; policies differ by seed."""
    rate = rng.uniform(0, 1, (tasks, 1))
    return lambda shape: rng.binomial(10, rng.beta(rate, 1 - rate, shape)) / 10


def piled_up(rng, tasks):
    """A share of each task's runs at 0, another at 1, the others between."""
    zero, one, _ = rng.dirichlet([1, 1, 1], (tasks, 1)).transpose(2, 0, 1)

    def draw(shape):
        place = rng.random(shape)
        return np.where(place < zero, 0.0, np.where(place < zero + one, 1.0, rng.beta(2, 2, shape)))

    return draw


def skewed(rng, tasks):
    """Six runs of ten at 1, the others anywhere below."""
    return lambda shape: np.where(rng.random(shape) < 0.6, 1.0, rng.random(shape))


def coverage(draw, tasks, seeds, statistic, interval_of, sets, draws):
    """Share of intervals, of those that there are, that cover the expected statistic; and the share that there are."""
    rng = np.random.default_rng([tasks, seeds])
    covered = []
    for _ in range(sets):
        one = draw(rng, tasks)
        many = one((4000, tasks, seeds)).reshape(4000, -1)
        expected = (many.mean(1) if statistic is mean else stats.trim_mean(many, 0.25, axis=1)).mean()
        for values in one((draws, tasks, seeds)):
            interval = interval_of(by_task(values))
            if interval is not None:
                covered.append(interval[0] <= expected <= interval[1])
    return np.mean(covered), len(covered) / (sets * draws)


FAST = {(1, 3): (100, 10), (10, 2): (40, 5), (30, 3): (30, 10)}
LONG = {(1, 3): (400, 50), (10, 2): (200, 10), (30, 3): (50, 20)}
"""Sets of tasks, and draws of runs on each, by tasks and seeds."""


def check_coverage(draw, tasks, seeds, sets, draws):
    for statistic, interval_of in ((mean, mean_interval), (iqm, partial(iqm_interval, reps=300))):
        share, given = coverage(draw, tasks, seeds, statistic, interval_of, sets, draws)
        print(f"{tasks} x {seeds} {draw.__name__} {statistic.__name__}: {share:.3f}, given {given:.2f}")
        assert share >= 0.9
        # Only where runs agree by chance, which is common with one task alone, is there none.
        assert given > (0.7 if tasks == 1 else 0.9)


@pytest.mark.parametrize("draw", [normal, clipped, success, piled_up, skewed], ids=lambda draw: draw.__name__)
@pytest.mark.parametrize(("tasks", "seeds"), FAST)
def test_95_percent_intervals_cover(draw, tasks, seeds):
    check_coverage(draw, tasks, seeds, *FAST[tasks, seeds])


@pytest.mark.slow
@pytest.mark.parametrize("draw", [normal, clipped, success, piled_up, skewed], ids=lambda draw: draw.__name__)
@pytest.mark.parametrize(("tasks", "seeds"), LONG)
def test_95_percent_intervals_cover_measured_well(draw, tasks, seeds):
    check_coverage(draw, tasks, seeds, *LONG[tasks, seeds])
