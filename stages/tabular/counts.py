"""The empirical MDP: how often each state followed each state and action, and what was paid.

Dimension letters: N rows, S states, A actions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...pipeline.errors import DatasetError


@dataclass(frozen=True)
class Counts:
    """Sums over the data; those of more data are the sum of both."""

    visits_SA: np.ndarray
    next_SAS: np.ndarray
    reward_SA: np.ndarray
    """Summed rewards."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.visits_SA + other.visits_SA, self.next_SAS + other.next_SAS, self.reward_SA + other.reward_SA
        )


@dataclass(frozen=True)
class MDP:
    """A finite Markov decision process. Rows of `transition_SAS` may sum to less than 1: the rest ends with value 0."""

    transition_SAS: np.ndarray
    reward_SA: np.ndarray


def count(
    state_N: np.ndarray,
    action_N: np.ndarray,
    next_state_N: np.ndarray,
    reward_N: np.ndarray,
    states: int,
    actions: int,
    ended_N: np.ndarray | None = None,
) -> Counts:
    """Count rows of indices.

    Args:
        ended_N: where the next state was terminal. It is not counted: its value is 0, also where other episodes
            continue from the same observation.
    Raises:
        DatasetError: a reward that is not finite; names its row.
    """
    if len(wrong := np.flatnonzero(~np.isfinite(reward_N))):
        raise DatasetError(
            f"the reward of row {wrong[0]} is {reward_N[wrong[0]]}, as are {len(wrong) - 1} others: rewards must be "
            "finite. Remove those episodes or correct their file"
        )
    visits_SA, next_SAS = np.zeros((states, actions)), np.zeros((states, actions, states))
    reward_SA = np.zeros((states, actions))
    np.add.at(visits_SA, (state_N, action_N), 1)
    weight_N = np.ones(len(state_N)) if ended_N is None else 1.0 - ended_N
    np.add.at(next_SAS, (state_N, action_N, next_state_N), weight_N)
    np.add.at(reward_SA, (state_N, action_N), reward_N)
    return Counts(visits_SA, next_SAS, reward_SA)


def empirical_mdp(counts: Counts) -> MDP:
    """The maximum-likelihood model. Pairs that were never seen get zero rows, so their value is 0."""
    scale_SA = 1 / np.maximum(counts.visits_SA, 1)
    return MDP(counts.next_SAS * scale_SA[..., None], counts.reward_SA * scale_SA)
