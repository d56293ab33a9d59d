"""How much each task's reward loss counts, so that a sparse reward is learned beside a dense one."""

from __future__ import annotations

import torch

from ...datasets.store import TaskStore
from .losses import two_hot

_SAMPLED_REWARDS = 65536


def reward_entropy(store: TaskStore, bins_M: torch.Tensor) -> torch.Tensor:
    """[K] nats: entropy of each task's average two-hot reward, from evenly spaced transitions.

    It is the cross-entropy that the best constant prediction reaches: what there is to explain by looking at the
    state. A sparse reward has little (1% of ones in the zeros: 0.06), a dense one a lot (2 to 3).
    """
    entropies = []
    for task in store.tasks:
        rewards = task.rows[:: max(len(task.rows) // _SAMPLED_REWARDS, 1), -1]
        marginal_M = two_hot(rewards, bins_M).mean(0)
        entropies.append(-(marginal_M * marginal_M.clamp(min=1e-12).log()).sum())
    return torch.stack(entropies)


def reward_weights(entropy_K: torch.Tensor, limit: float) -> torch.Tensor:
    """[K] weights of the reward loss: inverse to the entropy, relative to the task that has most, at most `limit`.

    With these, every task's loss counts as the share of its reward that is left unexplained. limit 1 turns it off.
    """
    entropy_K = entropy_K.clamp(min=1e-6)
    return (entropy_K.max() / entropy_K).clamp(max=limit)
