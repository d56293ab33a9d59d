"""Exact planning in a finite MDP: value iteration, policy iteration, policy mirror descent.

`allowed_SA` restricts the policies to some actions per state; a state without any has value 0.

Dimension letters: T steps, S states, A actions.
Source: Sutton and Barto (2018) chapter 4; Agarwal, Kakade, Lee and Mahajan (2021) theorem 16 for mirror descent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .counts import MDP


def state_values(mdp: MDP, policy_SA: np.ndarray, discount: float) -> np.ndarray:
    """V of a policy: (I - discount P_pi)^-1 r_pi, [S]."""
    transition_SS = np.einsum("sa,sat->st", policy_SA, mdp.transition_SAS)
    reward_S = (policy_SA * mdp.reward_SA).sum(1)
    return np.linalg.solve(np.eye(len(reward_S)) - discount * transition_SS, reward_S)


def action_values(mdp: MDP, value_S: np.ndarray, discount: float) -> np.ndarray:
    """r + discount P V: [S, A]."""
    return mdp.reward_SA + discount * mdp.transition_SAS @ value_S


def greedy(q_SA: np.ndarray, allowed_SA: np.ndarray | None = None) -> np.ndarray:
    """The policy that takes the best allowed action, the first of equals; none where none is allowed: [S, A]."""
    if allowed_SA is None:
        allowed_SA = np.ones(q_SA.shape, bool)
    policy_SA = np.eye(q_SA.shape[1])[np.where(allowed_SA, q_SA, -np.inf).argmax(1)]
    return policy_SA * allowed_SA.any(axis=1, keepdims=True)


def value_iteration(
    mdp: MDP, discount: float, tolerance: float = 1e-12, allowed_SA: np.ndarray | None = None
) -> np.ndarray:
    """Q of an optimal policy, each value within `tolerance` of it: [S, A]."""
    q_SA = np.zeros_like(mdp.reward_SA)
    while True:
        masked_SA = q_SA if allowed_SA is None else np.where(allowed_SA, q_SA, -np.inf)
        value_S = masked_SA.max(1)
        new_SA = action_values(mdp, np.where(np.isfinite(value_S), value_S, 0.0), discount)
        change = np.abs(new_SA - q_SA).max()
        q_SA = new_SA
        # A contraction: the distance to the fixed point is at most discount / (1 - discount) times the last change.
        if change * discount <= tolerance * (1 - discount) or change == 0:
            return q_SA


def policy_iteration(mdp: MDP, discount: float, allowed_SA: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(Q [S, A], policy [S, A]) where no allowed action improves the policy any more."""
    policy_SA = greedy(mdp.reward_SA, allowed_SA)
    while True:
        q_SA = action_values(mdp, state_values(mdp, policy_SA, discount), discount)
        better_SA = greedy(q_SA, allowed_SA)
        gain_S = ((better_SA - policy_SA) * q_SA).sum(1)
        # Rounding must not make it walk among equals for ever.
        improved_S = gain_S > 1e-12 * max(np.abs(q_SA).max(), 1)
        if not improved_S.any():
            return q_SA, policy_SA
        policy_SA = np.where(improved_S[:, None], better_SA, policy_SA)


@dataclass(frozen=True)
class Descent:
    """The iterates of policy mirror descent."""

    policy_TSA: np.ndarray
    """pi_0 to pi_T."""
    q_TSA: np.ndarray
    """Values of pi_0 to pi_{T-1}."""


def mirror_descent(mdp: MDP, discount: float, sizes: Sequence[float], start_SA: np.ndarray | None = None) -> Descent:
    """Exact policy mirror descent: pi_{t+1} is proportional to pi_t exp(sizes_t q_t).

    Args:
        start_SA: pi_0; uniform where None. Actions of probability 0 stay at 0.
    """
    states, actions = mdp.reward_SA.shape
    policy_SA = np.full((states, actions), 1 / actions) if start_SA is None else start_SA
    with np.errstate(divide="ignore"):
        logits_SA = np.log(policy_SA)
    policies, values = [policy_SA], []
    for size in sizes:
        q_SA = action_values(mdp, state_values(mdp, policies[-1], discount), discount)
        logits_SA = logits_SA + size * q_SA
        policies.append(softmax(logits_SA))
        values.append(q_SA)
    return Descent(np.stack(policies), np.stack(values))


def softmax(logits_SA: np.ndarray) -> np.ndarray:
    """Rows proportional to exp(logits); zero if all of a row's logits are -inf."""
    highest_S1 = logits_SA.max(1, keepdims=True)
    weight_SA = np.exp(logits_SA - np.where(np.isfinite(highest_S1), highest_S1, 0.0))
    return weight_SA / np.maximum(weight_SA.sum(1, keepdims=True), 1e-300)
