"""Rows of a task as a TorchRL replay buffer, without a copy of them.

Dimension letters: R rows, E episodes, O observation, A action; as in `store`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torchrl.data import TensorDictReplayBuffer
from torchrl.data.replay_buffers import ImmutableDatasetWriter, RandomSampler, SliceSampler, TensorStorage

from ..pipeline.errors import DatasetError


def replay_buffer(
    observation_RO: torch.Tensor,
    action_RA: torch.Tensor,
    reward_R: torch.Tensor,
    *,
    offsets: np.ndarray,
    terminated: np.ndarray,
    held_out: np.ndarray,
    slice_len: int | None,
    batch_size: int,
) -> TensorDictReplayBuffer:
    """A read-only buffer over rows in which each episode of T transitions takes T + 1.

    Args:
        offsets: [E + 1] int64; episode e takes rows offsets[e] up to offsets[e + 1].
        terminated: [E] bool.
        held_out: [E] bool, episodes that are never sampled.
        slice_len, batch_size: see `TaskStore.replay_buffer`.
    Raises:
        DatasetError: no episode is as long as `slice_len`, or `batch_size` is not a multiple of it.
    """
    size = len(observation_RO) - 1  # the last row of all ends an episode
    episode = np.repeat(np.arange(len(terminated)), np.diff(offsets))[:size]
    last = np.zeros(size, bool)
    last[offsets[1:] - 2] = True
    not_final = np.ones(size, bool)
    not_final[offsets[1:-1] - 1] = False  # a final observation has no transition
    kept = not_final & ~held_out[episode]
    if slice_len is None or slice_len == 1:
        sampler: RandomSampler | SliceSampler = _SomeOf(np.flatnonzero(kept))
    else:
        longest = int(np.diff(offsets)[~held_out].max()) - 1
        if longest < slice_len:
            raise DatasetError(f"slice_len: expected at most {longest}, the longest episode, found {slice_len}")
        if batch_size % slice_len:
            raise DatasetError(f"batch_size: expected a multiple of slice_len {slice_len}, found {batch_size}")
        # Rows that are not sampled are trajectories of one row, too short for a slice.
        trajectory = np.where(kept, episode, len(terminated) + np.arange(size))
        sampler = SliceSampler(slice_len=slice_len, trajectories=torch.from_numpy(trajectory), cache_values=True)

    def flags(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values[:, None])

    transitions = TensorDict(
        {
            "observation": observation_RO[:-1],
            "action": action_RA[:-1],
            "episode": torch.from_numpy(episode),
            "collector": {"mask": flags(not_final)},
            "next": {
                "observation": observation_RO[1:],
                "reward": reward_R[:-1, None],
                "done": flags(last),
                "terminated": flags(last & terminated[episode]),
                "truncated": flags(last & ~terminated[episode]),
            },
        },
        batch_size=[size],
    )
    storage = TensorStorage(transitions)
    return TensorDictReplayBuffer(
        storage=storage, sampler=sampler, writer=ImmutableDatasetWriter(), batch_size=batch_size
    )


class _SomeOf(RandomSampler):
    """Uniform over some positions of the storage."""

    def __init__(self, positions: np.ndarray) -> None:
        super().__init__()
        self._positions = torch.from_numpy(positions)

    def sample(self, storage: Any, batch_size: int) -> tuple[torch.Tensor, dict[str, Any]]:
        return self._positions[torch.randint(len(self._positions), (batch_size,), generator=self._rng)], {}
