"""Statistics of the training data used before training: observation scales, and reward-loss weights that let sparse
rewards be learned beside dense ones."""

from __future__ import annotations

import math

import torch

from ...datasets.store import STATISTICS_ROWS, TaskRows, TaskStore
from .losses import two_hot
from .networks import WorldModel

RATE_SHARE = 0.8
"""Share of an angle's change per step that its velocity explains at least. In data of six tasks of dm_control and two
of Gymnasium, 0.99 for the one angle without limit, and at most 0.51 for any other wide column."""


def scale_observations(model: WorldModel, k: int, rows: TaskRows, held_out: float) -> None:
    """Set what the model does to observations of task number `k`, from random transitions of the episodes that are not
    held out: mean and deviation, and which columns are angles, as far as its config asks for them."""
    width = rows.spec.observation_dim
    chosen = rows.sample_transitions(STATISTICS_ROWS, held_out)
    observation_NO = rows.rows[chosen, :width].double()
    if model.config.normalize_observations:
        mean_O, std_O = observation_NO.mean(0), observation_NO.std(0, unbiased=False)
        model.set_observation_statistics(k, mean_O.float(), std_O.float())
    if model.angle_KO is not None:
        model.angle_KO[k, :width] = turning(observation_NO, rows.rows[chosen + 1, :width].double())


def turning(observation_NO: torch.Tensor, next_NO: torch.Tensor) -> torch.Tensor:
    """[O] bool: which columns are angles that turn without limit, given observations before and after a step, [N, O].

    Their range exceeds 2 pi, and another column is their velocity: it explains RATE_SHARE of their change per step.
    Velocities often have such a range, too, but no column is proportional to their change.
    """
    change_NO, middle_NO = next_NO - observation_NO, (next_NO + observation_NO) / 2
    explained_OO = (change_NO.T @ middle_NO) ** 2 / (change_NO**2).sum(0)[:, None] / (middle_NO**2).sum(0)
    explained_OO.fill_diagonal_(0)
    wide_O = observation_NO.amax(0) - observation_NO.amin(0) > 2 * math.pi
    return wide_O & (explained_OO.nan_to_num(0).amax(1) > RATE_SHARE)


def reward_entropy(store: TaskStore, bins_M: torch.Tensor, held_out: float = 0.0) -> torch.Tensor:
    """[K] nats: entropy of each task's average two-hot reward, from random transitions of the episodes that are not
    held out.

    It is the cross-entropy that the best constant prediction reaches: what there is to explain by looking at the
    state. A sparse reward has little (1% of ones in the zeros: 0.06), a dense one a lot (2 to 3).
    """
    entropies = []
    for task in store.tasks:
        rewards = task.rows[task.sample_transitions(STATISTICS_ROWS, held_out), -1]
        marginal_M = two_hot(rewards, bins_M).mean(0)
        entropies.append(-(marginal_M * marginal_M.clamp(min=1e-12).log()).sum())
    return torch.stack(entropies)


def reward_weights(entropy_K: torch.Tensor, limit: float) -> torch.Tensor:
    """[K] weights of the reward loss: inverse to the entropy, relative to the task that has most, at most `limit`.

    With these, every task's loss counts as the share of its reward that is left unexplained. limit 1 turns it off.
    """
    entropy_K = entropy_K.clamp(min=1e-6)
    return (entropy_K.max() / entropy_K).clamp(max=limit)
