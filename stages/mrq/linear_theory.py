"""Why MR.Q learns a linear model: with linear values, model-free learning and planning in it have the same solution.

Features Z of all N state-action pairs, their expected successors Z' under the policy, rewards r:

    model-free    fixed point of semi-gradient TD:   w = (Z^T Z - gamma Z^T Z')^-1 Z^T r
    model-based   W_d, w_r by least squares:          w = (I - gamma W_d)^-1 w_r

Dimension letters: N state-action pairs, d features. Everything float64.
Source: MR.Q (arXiv 2501.16142) theorems 1 and 2; the published note writes Z r where Z^T r is meant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LinearProblem:
    """A finite Markov decision process under a policy, with linear features."""

    features: np.ndarray
    """Z [N, d]."""
    transition: np.ndarray
    """P [N, N], from a state-action pair to the next under the policy; rows sum to 1."""
    reward: np.ndarray
    """r [N], expected."""
    discount: float

    @property
    def next_features(self) -> np.ndarray:
        """Z' = P Z, [N, d]."""
        return np.asarray(self.transition @ self.features)

    @property
    def true_value(self) -> np.ndarray:
        """Q = (I - gamma P)^-1 r, [N]."""
        return np.linalg.solve(np.eye(len(self.reward)) - self.discount * self.transition, self.reward)


def random_problem(pairs: int, width: int, discount: float, random: np.random.Generator) -> LinearProblem:
    """Gaussian features and rewards, transition rows uniform on the simplex. width = pairs makes it tabular."""
    features = np.eye(pairs) if width == pairs else random.standard_normal((pairs, width))
    return LinearProblem(features, random.dirichlet(np.ones(pairs), pairs), random.standard_normal(pairs), discount)


def model_free_weights(problem: LinearProblem, weighting: np.ndarray | None = None) -> np.ndarray:
    """w [d], the fixed point of semi-gradient TD: (Z^T D Z - gamma Z^T D Z')^-1 Z^T D r.

    Args:
        weighting: diagonal of D [N], how often each pair is updated; None is 1 for all.
    """
    matrix, vector = _td_system(problem, weighting)
    return np.linalg.solve(matrix, vector)


def linear_model(problem: LinearProblem) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares dynamics W_d [d, d] and reward w_r [d]: Z W_d is near Z', Z w_r near r."""
    dynamics = np.linalg.lstsq(problem.features, problem.next_features, rcond=None)[0]
    reward = np.linalg.lstsq(problem.features, problem.reward, rcond=None)[0]
    return dynamics, reward


def model_based_weights(problem: LinearProblem) -> np.ndarray:
    """w [d] with Z w = the discounted sum of rewards that the linear model predicts: (I - gamma W_d)^-1 w_r."""
    dynamics, reward = linear_model(problem)
    return np.linalg.solve(np.eye(len(reward)) - problem.discount * dynamics, reward)


def rolled_out_weights(problem: LinearProblem, steps: int) -> np.ndarray:
    """sum_{t < steps} gamma^t W_d^t w_r, which tends to `model_based_weights` where the radius of gamma W_d is < 1."""
    dynamics, reward = linear_model(problem)
    total, term = np.zeros_like(reward), reward
    for _ in range(steps):
        total = total + term
        term = problem.discount * dynamics @ term
    return total


def td_step_radius(problem: LinearProblem, rate: float, weighting: np.ndarray | None = None) -> float:
    """Spectral radius of I - rate (Z^T D Z - gamma Z^T D Z'); TD of this rate diverges where it exceeds 1."""
    matrix, vector = _td_system(problem, weighting)
    return float(np.abs(np.linalg.eigvals(np.eye(len(vector)) - rate * matrix)).max())


def td_iterates(problem: LinearProblem, rate: float, steps: int, weighting: np.ndarray | None = None) -> np.ndarray:
    """[steps + 1, d] weights of semi-gradient TD from 0: w <- w - rate Z^T D (Z w - r - gamma Z' w)."""
    matrix, vector = _td_system(problem, weighting)
    weights = [np.zeros(len(vector))]
    for _ in range(steps):
        weights.append(weights[-1] - rate * (matrix @ weights[-1] - vector))
    return np.stack(weights)


def value_error_bounds(problem: LinearProblem) -> tuple[float, float]:
    """Two bounds of max |Z w - Q|: errors of the linear model over 1 - gamma.

    max_N |Z w_r - r| + gamma |(Z W_d - Z') w|    and, looser,    max_N |Z w_r - r| + max|w| sum_d |Z W_d - Z'|
    """
    weights = model_based_weights(problem)
    dynamics, reward = linear_model(problem)
    reward_error = np.abs(problem.features @ reward - problem.reward)
    dynamics_error = problem.features @ dynamics - problem.next_features
    tight = (reward_error + problem.discount * np.abs(dynamics_error @ weights)).max()
    loose = (reward_error + np.abs(weights).max() * np.abs(dynamics_error).sum(1)).max()
    return float(tight / (1 - problem.discount)), float(loose / (1 - problem.discount))


def _td_system(problem: LinearProblem, weighting: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    left = problem.features.T if weighting is None else problem.features.T * weighting
    return left @ (problem.features - problem.discount * problem.next_features), left @ problem.reward
