"""Fitted Q evaluation: what recorded data says that a policy earns, without a simulator.

Critics Q(s, a) are fitted to r + discount Q'(s', policy(s')) on recorded transitions, Q' a slow copy. Each critic
learns from its own resample of the episodes, so that their spread is the uncertainty that comes from the data. Batches
and resamples depend on the task alone: of two policies, the difference is less noisy than either value.

Dimension letters: K critics, F frames, E episodes, B transitions of a batch, O observation, A action, X both.
Source: Le et al. (arXiv 1903.00854); the bootstrap over episodes: Hao et al. (arXiv 2102.03607).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.signal import lfilter

from ...datasets.store import TaskStore
from ...pipeline.seeding import derive_seed
from ..layers.mlp import StackedMLP
from .config import FqeConfig

AVERAGED = 0.2
"""Share of the updates, the last ones, over which values are averaged."""
INITIAL_VALUES = 0.1
"""The last layer of a critic begins this much smaller than orthogonal, so that values begin near 0."""


@dataclass(frozen=True)
class Frames:
    """Recorded episodes of one task, one after the other, each with its final frame."""

    task: str
    observation_FO: torch.Tensor
    """Environment units."""
    action_FA: torch.Tensor
    """In [-1, 1], or one-hot."""
    reward_F: torch.Tensor
    return_F: torch.Tensor
    """Discounted return from each frame to the end of its episode; 0 at final frames."""
    terminal_F: torch.Tensor
    """bool, whether the next frame is a terminal state."""
    episode_F: torch.Tensor
    """int64, the episode of a frame."""
    begin_E: torch.Tensor
    """int64, the first frame of each episode."""
    discount: float

    @classmethod
    def read(cls, store: TaskStore, task: str, limit: int) -> Frames:
        """Whole episodes of a task, a random choice of at most `limit` frames, one episode at least."""
        rows, first_action = store.rows_of(task), store.table.observation_dim
        discount = rows.spec.discount
        assert discount is not None  # a store's task has one
        order = np.random.default_rng(derive_seed("fqe", task)).permutation(len(rows.lengths))
        number = int(np.searchsorted(np.cumsum(rows.lengths[order] + 1), limit, side="right"))
        chosen = np.sort(order[: max(number, 1)])
        taken = rows.rows[torch.from_numpy(np.concatenate([np.arange(*rows.offsets[e : e + 2]) for e in chosen]))]
        sizes = rows.lengths[chosen] + 1
        ends = np.cumsum(sizes)
        terminal = np.zeros(len(taken), bool)
        terminal[ends - 2] = rows.terminated[chosen]
        returns = [
            lfilter([1], [1, -discount], reward[::-1])[::-1]
            for reward in np.split(taken[:, -1].double().numpy(), ends[:-1])
        ]
        return cls(
            task,
            taken[:, : rows.spec.observation_dim],
            taken[:, first_action : first_action + rows.spec.action_dim],
            taken[:, -1],
            torch.from_numpy(np.concatenate(returns)).float(),
            torch.from_numpy(terminal),
            torch.from_numpy(np.repeat(np.arange(len(chosen)), sizes)),
            torch.from_numpy(ends - sizes),
            discount,
        )

    @property
    def transition_S(self) -> torch.Tensor:
        """int64, the frames that a transition begins at: all but the final ones."""
        final = F.pad(self.begin_E[1:], (0, 1), value=len(self.reward_F)) - 1
        kept = torch.ones(len(self.reward_F), dtype=torch.bool)
        kept[final] = False
        return kept.nonzero()[:, 0]


def estimate_values(
    frames: Frames, policy_action_FA: torch.Tensor, config: FqeConfig, advance: Callable[[], None] = lambda: None
) -> torch.Tensor:
    """Fit the critics of one policy.

    Args:
        policy_action_FA: what the policy does in each frame; in [-1, 1], or one-hot.
        advance: called after each update.
    Returns:
        [K] mean discounted return from the first frames of each critic's episodes, environment units.
    """
    critics, episodes = config.critics, len(frames.begin_E)
    seed = derive_seed("fqe", frames.task, config.seed)
    generator = torch.Generator().manual_seed(seed)
    drawn_KE = torch.randint(episodes, (critics, episodes), generator=generator)
    weight_KE = torch.zeros(critics, episodes).scatter_add_(1, drawn_KE, torch.ones(critics, episodes))
    std_O, mean_O = torch.std_mean(frames.observation_FO, 0)
    state_FO = (frames.observation_FO - mean_O) / std_O.clamp(min=1e-6)
    scale = frames.return_F.std().clamp(min=1e-6)
    q, slow = (StackedMLP(critics, state_FO.shape[1] + policy_action_FA.shape[1], config.units, 1) for _ in range(2))
    for k in range(critics):
        q.initialise_orthogonal(k, generator)
    with torch.no_grad():
        q.weight[-1].mul_(INITIAL_VALUES)
    slow.requires_grad_(False).load_state_dict(q.state_dict())
    parameters: list[torch.Tensor] = list(q.parameters())
    optimizer = torch.optim.Adam(parameters, config.lr, foreach=True)
    transition_S = frames.transition_S

    def values(network: StackedMLP, frame_B: torch.Tensor, action_FA: torch.Tensor) -> torch.Tensor:
        """[K, B], in units of the scale."""
        taken_BX = torch.cat([state_FO[frame_B], action_FA[frame_B]], -1)
        return network(taken_BX.expand(critics, -1, -1))[..., 0]

    sums, measured = torch.zeros(critics), 0
    for update in range(config.updates):
        left = 1 - update / config.updates
        optimizer.param_groups[0]["lr"] = config.lr * max(left, 0.05)
        frame_B = transition_S[torch.randint(len(transition_S), (config.batch_size,), generator=generator)]
        with torch.no_grad():
            next_KB = values(slow, frame_B + 1, policy_action_FA) * ~frames.terminal_F[frame_B]
            target_KB = frames.reward_F[frame_B] / scale + frames.discount * next_KB
        q_KB = values(q, frame_B, frames.action_FA)
        loss_KB = F.huber_loss(q_KB, target_KB, reduction="none") * weight_KE[:, frames.episode_F[frame_B]]
        optimizer.zero_grad(set_to_none=True)
        loss_KB.mean(1).sum().backward()
        optimizer.step()
        torch._foreach_lerp_(list(slow.parameters()), [p.detach() for p in parameters], config.target_rate)
        if left <= AVERAGED and (config.updates - 1 - update) % 10 == 0:
            with torch.no_grad():
                first_KE = values(slow, frames.begin_E, policy_action_FA)
            sums += (first_KE * weight_KE).sum(1) / weight_KE.sum(1)
            measured += 1
        advance()
    return sums / measured * scale
