"""Learning from values and planning in the linear model end in the same weights, as stored and on other processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from orrery.stages.mrq.linear_theory import (
    LinearProblem,
    linear_model,
    model_based_weights,
    model_free_weights,
    random_problem,
    rolled_out_weights,
    td_iterates,
    td_step_radius,
    value_error_bounds,
)

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "mrq_theory.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def problem(golden):
    return LinearProblem(golden["Z"], golden["P"], golden["r"], float(golden["gamma"]))


def test_stored_solutions_errors_and_bounds(golden, problem):
    np.testing.assert_allclose(problem.next_features, golden["Zp"], atol=1e-12)
    for weights in (model_free_weights(problem), model_based_weights(problem), rolled_out_weights(problem, 200)):
        np.testing.assert_allclose(weights, golden["w_star"], atol=1e-12)
    dynamics, reward = linear_model(problem)
    np.testing.assert_allclose(dynamics, golden["W_d"], atol=1e-12)
    np.testing.assert_allclose(reward, golden["w_r"], atol=1e-12)
    np.testing.assert_allclose(problem.true_value, golden["Q_true"], atol=1e-10)
    error = np.abs(problem.features @ model_free_weights(problem) - problem.true_value)
    np.testing.assert_allclose(error, golden["VE"], atol=1e-10)
    tight, loose = value_error_bounds(problem)
    assert tight == pytest.approx(float(golden["bound_tight"]), rel=1e-10)
    assert loose == pytest.approx(float(golden["bound_loose"]), rel=1e-10)
    assert error.max() <= tight <= loose


def test_td_gets_there(golden, problem):
    np.testing.assert_allclose(td_iterates(problem, 0.01, 20_000)[-1], golden["w_star"], atol=1e-12)


def test_the_same_fixed_point_where_td_diverges(problem):
    """Updating some pairs far more often than they are visited: the fixed point is still one, TD runs away from it."""
    random = np.random.default_rng(0)
    for _ in range(200):
        other = random_problem(12, 4, 0.99, random)
        weighting = random.exponential(size=12) ** 4
        if td_step_radius(other, 1e-3, weighting) > 1.0005:
            break
    else:
        pytest.fail("no divergent weighting among 200")
    fixed = model_free_weights(other, weighting)
    iterates = td_iterates(other, 1e-3, 20_000, weighting)
    assert np.abs(iterates[-1] - fixed).max() > 10 * np.abs(iterates[0] - fixed).max()
    still = fixed - 1e-3 * (other.features.T * weighting) @ (
        other.features @ fixed - other.reward - other.discount * other.next_features @ fixed
    )
    np.testing.assert_allclose(still, fixed, atol=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_random_processes(seed):
    random = np.random.default_rng(seed)
    problem = random_problem(int(random.integers(10, 60)), int(random.integers(2, 9)), 0.9, random)
    weights = model_free_weights(problem)
    np.testing.assert_allclose(model_based_weights(problem), weights, atol=1e-8)
    tight, loose = value_error_bounds(problem)
    assert np.abs(problem.features @ weights - problem.true_value).max() <= tight + 1e-9
    assert tight <= loose + 1e-9


def test_with_a_feature_for_every_pair_nothing_is_left():
    problem = random_problem(15, 15, 0.9, np.random.default_rng(1))
    np.testing.assert_allclose(model_based_weights(problem), problem.true_value, atol=1e-10)
    assert max(value_error_bounds(problem)) < 1e-10
