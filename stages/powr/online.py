"""Online POWR: collect with the policy, refit with new centres, improve, repeat.

One weight per row of the buffer (`Buffer.weight_N`) defines the policy, even after many epochs with different centres.
Weights include their step size.

Dimension letters: N rows, M centres, B batch, D state, U actions.
Source: POWR (arXiv 2406.19861) algorithm 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...datasets.rollout import Act, EpisodeResult
from ...datasets.schema import Episode
from ...pipeline.seeding import derive_seed
from .actions import DiscreteActions
from .centres import choose_centres
from .config import KernelPlannerConfig
from .evaluation import Centres, KernelBlocks, fit
from .features import Features
from .improvement import kernel_sum, mirror_descent, policy_weights, step_sizes
from .kernels import StateKernel
from .transitions import Transitions, concatenate, with_sinks


@dataclass(frozen=True)
class Epoch:
    """Result of one fit and its steps of mirror descent."""

    num_rows: int
    num_centres: int
    radius: float


class OnlineLearner:
    """The buffer and its policy, for discrete actions."""

    def __init__(
        self,
        features: Features,
        kernel: StateKernel,
        num_actions: int,
        discount: float,
        config: KernelPlannerConfig,
        seed: int,
    ) -> None:
        self.features, self.kernel, self.actions = features, kernel, DiscreteActions(num_actions)
        self.discount, self.config, self.seed = discount, config, seed
        self.rows: Transitions | None = None
        self.weight_N = torch.zeros(0, dtype=torch.float64)
        self._next_logits_NU = torch.zeros(0, num_actions, dtype=torch.float64)
        self._epochs = 0
        self._kept: deque[tuple[torch.Tensor, torch.Tensor]] = deque()
        self._compressed: tuple[torch.Tensor, torch.Tensor] | None = None
        self._tried: set[tuple[bytes, int]] = set()

    def add(self, episodes: Sequence[Episode]) -> bool:
        """Append episodes (may be empty), with sink rows after terminations but not after time limits.

        Returns:
            Whether they contain a state-action pair that is new to the buffer.
        """
        if not episodes:
            return False
        new = concatenate([self._rows_of(episode) for episode in episodes])
        states, actions = new.state_NO.numpy(), new.action.tolist()
        pairs = {(state.tobytes(), action) for state, action in zip(states, actions, strict=True)}
        untried = not pairs <= self._tried
        self._tried |= pairs
        logits_NU = self.logits(new.next_state_NO)
        self.rows = new if self.rows is None else concatenate([self.rows, new])
        self.weight_N = torch.cat([self.weight_N, self.weight_N.new_zeros(len(new))])
        self._next_logits_NU = torch.cat([self._next_logits_NU, logits_NU])
        return untried

    def _rows_of(self, episode: Episode) -> Transitions:
        offset = self.config.reward_offset
        choices = torch.arange(self.actions.num) if self.config.sinks == "all" else None
        return episode_rows(episode, self.features, offset, choices)

    def improve(self) -> Epoch:
        """Choose centres, fit to all rows, and take this epoch's steps of mirror descent."""
        assert self.rows is not None
        config = self.config
        self._forget()
        index_M = choose_centres(
            self.rows,
            min(config.centres, len(self.rows)),
            config.selection,
            derive_seed("centres", self.seed, self._epochs),
            self.kernel,
            self.actions,
        )
        blocks = KernelBlocks(self.kernel, self.actions, Centres.of(self.rows, index_M), self.rows)
        model = fit(blocks, config.ridge, config.jitter)
        sizes = step_sizes(config.step_size, config.steps, config.step_growth)
        found = mirror_descent(blocks, model, self._next_logits_NU, sizes, self.discount)
        self.weight_N[index_M] += found.weight_M
        self._compressed = None
        self._next_logits_NU = found.next_logits_NU
        self._kept.append((index_M, found.weight_M))
        self._epochs += 1
        return Epoch(len(self.rows), len(index_M), found.radius)

    def _forget(self) -> None:
        """Remove the weights of epochs beyond the memory."""
        if not self.config.memory or len(self._kept) < self.config.memory:
            return
        assert self.rows is not None
        while len(self._kept) >= self.config.memory:
            index_M, weight_M = self._kept.popleft()
            self.weight_N[index_M] -= weight_M
        if not self._kept:
            self.weight_N.zero_()
        self._compressed = None
        self._next_logits_NU = self.logits(self.rows.next_state_NO)

    def logits(self, state_BD: torch.Tensor) -> torch.Tensor:
        """log pi(u | state) up to a constant per row: [B, U]."""
        if self.rows is None:
            return state_BD.new_zeros(len(state_BD), self.actions.num)
        return kernel_sum(self.kernel, *self.compressed(), state_BD)

    def compressed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(centres [M, D], weight per choice [M, U]): the complete policy."""
        if self._compressed is None:
            assert self.rows is not None
            self._compressed = policy_weights(self.actions, self.rows, self.weight_N)
        return self._compressed


def episode_rows(
    episode: Episode, features: Features, offset: float = 0.0, sink_choices: torch.Tensor | None = None
) -> Transitions:
    """The rows of one episode of discrete actions, sinks included; see `with_sinks`. `offset` is added to rewards."""
    state_TD = features(torch.from_numpy(episode.observations))
    terminated_T = torch.zeros(len(episode), dtype=torch.bool)
    terminated_T[-1] = episode.terminated
    rows = Transitions(
        state_TD[:-1],
        torch.from_numpy(episode.actions).argmax(1),
        state_TD[1:],
        torch.from_numpy(episode.rewards).double() + offset,
    )
    return with_sinks(rows, terminated_T, sink_choices, offset)


def sampled_act(learner: OnlineLearner, seeds: Sequence[int]) -> Act:
    """Actions drawn from the policy, by a random stream per episode."""
    streams = [np.random.default_rng(derive_seed("act", seed)) for seed in seeds]

    def act(observation: np.ndarray, episode: np.ndarray, /) -> np.ndarray:
        share_BU = torch.softmax(learner.logits(learner.features(torch.from_numpy(observation))), 1).numpy()
        chosen = [streams[e].choice(len(row), p=row / row.sum()) for e, row in zip(episode, share_BU, strict=True)]
        return np.eye(learner.actions.num, dtype=np.float32)[chosen]

    return act


def greedy_act(learner: OnlineLearner) -> Act:
    """The most likely action."""

    def act(observation: np.ndarray, _: np.ndarray, /) -> np.ndarray:
        chosen = learner.logits(learner.features(torch.from_numpy(observation))).argmax(1).numpy()
        return np.eye(learner.actions.num, dtype=np.float32)[chosen]

    return act


def completed(results: Sequence[EpisodeResult]) -> list[Episode]:
    """Return the completed episodes, without those in which the environment raised."""
    return [result.episode for result in results if result.episode is not None]
