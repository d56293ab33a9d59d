"""Statistics of the training data used before training: observation scales, and reward-loss weights that let sparse
rewards be learned beside dense ones."""

from __future__ import annotations

import math

import torch

from ...datasets.store import STATISTICS_ROWS, TaskRows, TaskStore
from .losses import two_hot
from .networks import WorldModel


def scale_observations(model: WorldModel, k: int, rows: TaskRows, held_out: float) -> None:
    """Set what the model does to observations of task number `k`, from random transitions of the episodes that are not
    held out: mean and deviation, and which columns are angles, as far as its config asks for them."""
    chosen = rows.sample_transitions(STATISTICS_ROWS, held_out)
    observation_NO = rows.rows[chosen, : rows.spec.observation_dim].double()
    if model.config.normalize_observations:
        mean_O, std_O = observation_NO.mean(0), observation_NO.std(0, unbiased=False)
        model.set_observation_statistics(k, mean_O.float(), std_O.float())
    if model.angle_KO is not None:
        model.angle_KO[k, : rows.spec.observation_dim] = observation_NO.amax(0) - observation_NO.amin(0) > 2 * math.pi


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
