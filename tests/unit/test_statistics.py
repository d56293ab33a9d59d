"""The interquartile mean against scipy and by hand; the bootstrap against what resampling must give."""

import numpy as np
import pytest
from orrery.stages.statistics import iqm, mean, stratified_bootstrap
from scipy.stats import trim_mean


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 41])
def test_iqm_is_the_mean_trimmed_by_a_quarter(count):
    values = np.random.default_rng(count).normal(size=count)
    assert iqm(values) == pytest.approx(trim_mean(values, 0.25))


def test_iqm_by_hand():
    assert iqm(np.array([100.0, 2.0, 1.0, -50.0])) == 1.5
    assert iqm(np.array([[0.0, 9.0], [3.0, 6.0]])) == 4.5


def test_runs_are_resampled_within_their_task_only():
    # Each task's runs agree, so no resample can change anything; mixing tasks would.
    assert stratified_bootstrap({"a": np.array([0.0, 0.0]), "b": np.array([1.0, 1.0])}, mean) == (0.5, 0.5)


def test_the_interval_of_two_runs_spans_both():
    # Resampled means of {0, 1}: 0, 1/2 and 1 with probabilities 1/4, 1/2, 1/4, so 95% reaches from end to end.
    assert stratified_bootstrap({"a": np.array([0.0, 1.0])}, mean) == (0.0, 1.0)


def test_the_interval_approaches_the_normal_one():
    values = np.random.default_rng(0).normal(size=400)
    low, high = stratified_bootstrap({"a": values}, mean)
    expected = 1.96 * values.std() / 20
    assert (high - low) / 2 == pytest.approx(expected, rel=0.1)
    assert (high + low) / 2 == pytest.approx(values.mean(), abs=expected / 10)


def test_one_run_per_task_has_no_interval():
    assert stratified_bootstrap({"a": np.array([0.2]), "b": np.array([0.7])}, iqm) is None
