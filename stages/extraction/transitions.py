"""The real transitions of some tasks in the latent space of a frozen model, for critics that learn from data.

Every frame is encoded once. Rewards are kept as discounted sums to the end of their episode, from which the sum over
any number of steps is one subtraction.

Dimension letters: K tasks, F frames of all of them, S transitions, D latent, O observation, A action, M members,
B transitions of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ...datasets.store import TaskRows, TaskStore
from ...datasets.windows import Split
from ...pipeline.seeding import derive_seed
from ..world_model.networks import WorldModel
from .starts import encode_frames


@dataclass(frozen=True)
class TransitionBatch:
    """Windows of real data, each of n steps or of those that its episode has left."""

    z_MBD: torch.Tensor
    """Latents where the windows begin."""
    action_MBA: torch.Tensor
    """Actions taken there."""
    reward_MB: torch.Tensor
    """Discounted sums of the rewards of the windows, environment units."""
    factor_MB: torch.Tensor
    """What the value after a window counts: discount^steps, 0 after a terminal state."""
    next_z_MBD: torch.Tensor
    """Latents where the windows end."""


@dataclass(frozen=True)
class LatentTransitions:
    """Episodes of K tasks, one after the other; a final frame of an episode is no transition."""

    z_FD: torch.Tensor
    action_FA: torch.Tensor
    return_F: torch.Tensor
    """float64, sum of discounted rewards from each frame to the end of its episode."""
    left_F: torch.Tensor
    """int64, steps to the end of the episode."""
    terminal_F: torch.Tensor
    """bool, whether that end is a terminal state."""
    frame_S: torch.Tensor
    """int64, the frames that have a transition, task after task."""
    first_K: torch.Tensor
    """int64, where a task begins in frame_S."""
    count_K: torch.Tensor
    """int64, transitions of a task."""

    def batch(
        self, number_MB: torch.Tensor, row_M: torch.Tensor, discount_M1: torch.Tensor, steps: int
    ) -> TransitionBatch:
        """Windows of `steps` from transitions `number_MB`, counted from 0 in the task of row `row_M` [M].

        Windows are shorter at the end of an episode: what follows a truncated one is its final frame's value.
        """
        begin_MB = self.frame_S[self.first_K[row_M][:, None] + number_MB]
        left_MB = self.left_F[begin_MB]
        length_MB = left_MB.clamp(max=steps)
        end_MB = begin_MB + length_MB
        discount_MB = discount_M1.double() ** length_MB
        reward_MB = self.return_F[begin_MB] - discount_MB * self.return_F[end_MB]
        ends_MB = self.terminal_F[begin_MB] & (length_MB == left_MB)
        return TransitionBatch(
            self.z_FD[begin_MB],
            self.action_FA[begin_MB],
            reward_MB.float(),
            torch.where(ends_MB, 0, discount_MB).float(),
            self.z_FD[end_MB],
        )


def encode_transitions(
    model: WorldModel,
    store: TaskStore,
    task_ids: Sequence[int],
    frames_per_task: int,
    seed: int,
    held_out: float = 0.0,
    advance: Callable[[], None] = lambda: None,
    *,
    split: Split = "train",
) -> LatentTransitions:
    """Encode the episodes of each task that its model's training did not hold out, or those that it did; of a task with
    more frames than `frames_per_task`, a random choice of them.

    `advance` is called after each task.
    """
    device = next(model.parameters()).device
    parts: list[tuple[torch.Tensor, ...]] = []
    begin = 0
    for k in task_ids:
        spec = model.table[k]
        rows = store.rows_of(spec.name)
        episodes = _choose_episodes(rows, frames_per_task, seed, held_out, split)
        lengths = rows.lengths[episodes]
        frames = np.concatenate([np.arange(rows.offsets[e], rows.offsets[e + 1]) for e in episodes])
        left = np.concatenate([np.arange(length, -1, -1) for length in lengths])
        taken = rows.rows[torch.from_numpy(frames)]
        own_action = taken[:, store.table.observation_dim :][:, : spec.action_dim]
        assert spec.discount is not None
        parts.append(
            (
                encode_frames(model, taken[:, : spec.observation_dim], k, device),
                F.pad(own_action, (0, model.table.action_dim - spec.action_dim)),
                torch.from_numpy(_returns_to_go(taken[:, -1].double().numpy(), lengths, spec.discount)),
                torch.from_numpy(left),
                torch.from_numpy(np.repeat(rows.terminated[episodes], lengths + 1)),
                torch.from_numpy(begin + np.flatnonzero(left)),
            )
        )
        begin += len(taken)
        advance()
    z_FD, action_FA, return_F, left_F, terminal_F, frame_S = (
        torch.cat(column).to(device) for column in zip(*parts, strict=True)
    )
    count_K = torch.tensor([len(part[-1]) for part in parts], device=device)
    return LatentTransitions(
        z_FD, action_FA, return_F, left_F, terminal_F, frame_S, count_K.cumsum(0) - count_K, count_K
    )


def _choose_episodes(rows: TaskRows, frames: int, seed: int, held_out: float, split: Split) -> np.ndarray:
    """Numbers of episodes of a split, in order; a random choice with at most so many frames (one episode at least).
    Depends on (seed, task name) alone. Where no episode is held out, all are of either split."""
    chosen = rows.held_out(held_out)
    kept = np.flatnonzero(chosen if split == "held_out" and chosen.any() else ~chosen)
    order = np.random.default_rng(derive_seed("transitions", rows.spec.name, seed)).permutation(kept)
    number = int(np.searchsorted(np.cumsum(rows.lengths[order] + 1), frames, side="right"))
    return np.sort(order[: max(number, 1)])


def _returns_to_go(reward_F: np.ndarray, lengths: np.ndarray, discount: float) -> np.ndarray:
    """[F] float64: sum of discounted rewards from each frame to the end of its episode; 0 at final frames."""
    return_F = np.zeros(len(reward_F))
    last = np.cumsum(lengths + 1) - 1
    for back in range(1, int(lengths.max()) + 1):
        frame = last[lengths >= back] - back
        return_F[frame] = reward_F[frame] + discount * return_F[frame + 1]
    return return_F
