"""A replay buffer that stores each observation once, and windows sampled from it.

An episode of L steps takes L + 1 consecutive slots, the last of which holds its final observation and no step:
the layout of a store. Several environments write to lanes of their own, so that episodes stay consecutive; each lane
is a ring, whose oldest episode is overwritten slot by slot.

A window of n steps may start where n steps of its episode follow, or fewer if the episode ended in a terminal
state: after that the window is padded (not_done is 0 from there on, rewards are 0). The end of a truncated episode
gives no padded windows, since what would have followed is not known.

Images are stored as single frames; the stack that the network sees is put together when a window is drawn, with the
episode's first frame repeated before its start.

Dimension letters: N slots, B windows, T steps of a window, A action.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...datasets.schema import Episode
from ...pipeline.errors import CheckpointError, ConfigError
from .losses import reward_scale
from .priorities import Priorities


@dataclass(frozen=True)
class ReplayWindows:
    """B windows of T steps."""

    action: torch.Tensor
    """[B, T, A]."""
    reward: torch.Tensor
    """[B, T]; 0 after a terminal state."""
    not_done: torch.Tensor
    """[B, T]; 0 from a terminal step on."""


class Replay:
    """Ring buffer of one task's transitions."""

    def __init__(
        self,
        capacity: int,
        observation_shape: tuple[int, ...],
        action_dim: int,
        horizons: Sequence[int],
        *,
        lanes: int = 1,
        frames: int = 1,
        device: torch.device | str = "cpu",
        prioritised: bool = True,
        released_starts: bool = False,
    ) -> None:
        """Args:
            capacity: N, slots over all lanes; a multiple of `lanes` is used.
            observation_shape: of what is stored per slot: (O,) kept as float32, or (C, H, W) of one frame, as uint8.
            horizons: lengths of the windows that will be drawn.
            lanes: environments that write.
            frames: frames stacked into one observation.
            released_starts: a window starts only where max(horizons) + 1 steps follow, or where at most
                max(horizons) are left of an episode that ended in a terminal state and was not truncated.
        Raises:
            ConfigError: a lane is shorter than two of the longest windows.
        """
        device = torch.device(device)
        self.lanes, self.frames, self._length = lanes, frames, capacity // lanes
        self.horizons, self._longest = tuple(horizons), max(horizons)
        self._released_starts = released_starts
        if self._length < 2 * self._longest + frames + 2:
            raise ConfigError(
                f"a replay buffer of {capacity} slots for {lanes} environments leaves {self._length} for each; "
                f"expected at least {2 * self._longest + frames + 2} for windows of {self._longest} steps"
            )
        slots = self._length * lanes
        kind = torch.float32 if len(observation_shape) == 1 else torch.uint8
        self.observation = torch.zeros(slots, *observation_shape, dtype=kind, device=device)
        self.action = torch.zeros(slots, action_dim, device=device)
        self.reward = torch.zeros(slots, device=device)
        self.not_done = torch.ones(slots, device=device)
        self.is_step = torch.zeros(slots, dtype=torch.bool, device=device)
        """False if a slot holds a final observation, or nothing."""
        self.age = torch.zeros(slots, dtype=torch.int64, device=device)
        """Steps since the start of the episode."""
        self.success = torch.zeros(slots, dtype=torch.bool, device=device)
        self.priorities = Priorities(slots, horizons, device, prioritised)
        self.has_terminated = False
        """Whether any episode ever ended in a terminal state."""
        self._position = [0] * lanes
        self._wrapped = [False] * lanes
        self._episode_length = [0] * lanes

    @property
    def device(self) -> torch.device:
        return self.reward.device

    @property
    def used(self) -> int:
        """Slots up to the last one that was ever written."""
        return len(self.reward) if self._wrapped[-1] else (self.lanes - 1) * self._length + self._position[-1]

    @property
    def num_steps(self) -> int:
        """Transitions held."""
        return int(self.is_step.sum())

    def reward_scale(self, released: bool) -> float:
        """Mean absolute reward of what is held; see `losses.reward_scale`."""
        if released:
            return reward_scale(self.reward, self.used, floor=1e-8)
        return reward_scale(self.reward, self.num_steps)

    def add(
        self,
        lane: int,
        observation: torch.Tensor,
        action: torch.Tensor,
        reward: float,
        next_observation: torch.Tensor,
        terminated: bool,
        truncated: bool,
        success: bool = False,
    ) -> None:
        """Store one transition; of stacked images, the newest frame. `next_observation` ends the episode if that is
        over, and is the next call's `observation` otherwise."""
        slot = self._slot(lane, 0)
        self._overwrite(slot, observation)
        self.action[slot] = action
        self.reward[slot] = reward
        self.not_done[slot] = float(not terminated)
        self.success[slot] = success
        self.is_step[slot] = True
        self.age[slot] = self._episode_length[lane]
        self.priorities.weight[slot] = self.priorities.largest
        self._advance(lane)
        self._episode_length[lane] += 1
        # Windows that end with this step need its next observation now, not when the next one is stored.
        self._overwrite(self._slot(lane, 0), next_observation)
        self.age[self._slot(lane, 0)] = self._episode_length[lane]
        self._enable(lane, terminated, truncated)
        if terminated or truncated:
            self.has_terminated |= terminated
            self._advance(lane)
            self._episode_length[lane] = 0

    def _slot(self, lane: int, offset: int) -> int:
        """The slot `offset` after (or before) the next one to be written in a lane."""
        return lane * self._length + (self._position[lane] + offset) % self._length

    def _advance(self, lane: int) -> None:
        self._position[lane] += 1
        if self._position[lane] == self._length:
            self._position[lane], self._wrapped[lane] = 0, True

    def _overwrite(self, slot: int, observation: torch.Tensor) -> None:
        """Write an observation into a slot, and remove every window that needs its old contents."""
        self.observation[slot] = observation
        self.action[slot] = 0
        self.reward[slot] = 0
        self.not_done[slot] = 1
        self.success[slot] = False
        self.is_step[slot] = False
        lane = slot - slot % self._length
        for offset in range(self.frames):  # windows that start later, but whose first stack reaches back to here
            start = lane + (slot - lane + offset) % self._length
            for starts in self.priorities.starts.values():
                if offset == 0:
                    starts[start] = False
                else:  # not as a condition, for which the host would wait
                    starts[start] &= self.age[start] < offset

    def _enable(self, lane: int, terminated: bool, truncated: bool) -> None:
        """Enable the windows that the latest step of a lane completes."""
        length = self._episode_length[lane]
        for horizon, starts in self.priorities.starts.items():
            span, padded = horizon, terminated
            if self._released_starts:
                span, padded = self._longest + 1, terminated and not truncated
            if length >= span:
                starts[self._slot(lane, -span)] = True
            if padded:
                for back in range(1, min(length, span - 1) + 1):
                    starts[self._slot(lane, -back)] = True

    def slots_of(self, start_B: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """[B, T] slots at `offsets` [T] from the first slots [B] of windows, around the end of each ring."""
        lane = start_B - start_B % self._length
        return lane[:, None] + ((start_B - lane)[:, None] + offsets) % self._length

    def windows(self, start_B: torch.Tensor, horizon: int) -> ReplayWindows:
        """The steps of the windows that start at `start_B`."""
        slots = self.slots_of(start_B, torch.arange(horizon, device=self.device))
        not_done = self.not_done[slots].cumprod(1)
        reward = self.reward[slots]
        reward[:, 1:] *= not_done[:, :-1]
        return ReplayWindows(self.action[slots], reward, not_done)

    def unpadded_windows(self, start_B: torch.Tensor, horizon: int) -> ReplayWindows:
        """Return the same without padding: the next slots follow a terminal state, as in the released code."""
        slots = self.slots_of(start_B, torch.arange(horizon, device=self.device))
        not_done = torch.where(self.is_step[slots], self.not_done[slots], 0)
        return ReplayWindows(self.action[slots], self.reward[slots], not_done)

    def observations(self, start_B: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Return the network's input `offsets` [T] steps into each window: [B, T, O], or [B, T, frames * C, H, W]."""
        slots = self.slots_of(start_B, offsets)
        if self.frames == 1:
            return self.observation[slots]
        back = torch.arange(self.frames - 1, -1, -1, device=self.device)
        back = torch.minimum(back, self.age[slots][..., None])
        lane = slots - slots % self._length
        stacked = lane[..., None] + ((slots - lane)[..., None] - back) % self._length
        return self.observation[stacked].flatten(2, 3)

    def episodes(self) -> Iterator[Episode]:
        """Yield every complete episode, oldest first, lane by lane."""
        for lane in range(self.lanes):
            first = self._position[lane] if self._wrapped[lane] else 0
            count = self._length if self._wrapped[lane] else self._position[lane]
            slots = lane * self._length + (first + np.arange(count)) % self._length
            is_step = self.is_step.cpu().numpy()[slots]
            age = self.age.cpu().numpy()[slots]
            begin = 0
            for end in np.flatnonzero(~is_step).tolist():
                part = torch.from_numpy(slots[begin : end + 1])
                if end > begin and age[begin] == 0:
                    yield self._episode(part)
                begin = end + 1

    def _episode(self, slots: torch.Tensor) -> Episode:
        slots = slots.to(self.device)
        before = slots[:-1]
        return Episode(
            observations=self.observation[slots].cpu().numpy(),
            actions=self.action[before].cpu().numpy(),
            rewards=self.reward[before].cpu().numpy(),
            terminated=bool(self.not_done[before[-1]] == 0),
            success=self.success[before].cpu().numpy(),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything in the used slots, so that sampling and writing continue exactly."""
        used = min(self.used + 1, len(self.reward))  # one more: the observation that the next step starts from
        tensors = {name: getattr(self, name)[:used].clone() for name in _SAVED}
        return {
            **tensors,
            "priorities": self.priorities.state_dict(used),
            "shape": [len(self.reward), self.lanes, self.frames, *self.observation.shape[1:], self.action.shape[1]],
            "has_terminated": self.has_terminated,
            "position": list(self._position),
            "wrapped": list(self._wrapped),
            "episode_length": list(self._episode_length),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises:
        CheckpointError: the state is of a replay of other sizes.
        """
        shape = [len(self.reward), self.lanes, self.frames, *self.observation.shape[1:], self.action.shape[1]]
        if state["shape"] != shape:
            raise CheckpointError(
                "the saved replay buffer has other sizes than this one (slots, lanes, frames, observation, action): "
                f"expected {shape}, found {state['shape']}; resume with the same environment and settings"
            )
        for name in _SAVED:
            getattr(self, name)[: len(state[name])] = state[name]
        self.priorities.load_state_dict(state["priorities"])
        self.has_terminated = state["has_terminated"]
        self._position, self._wrapped = list(state["position"]), list(state["wrapped"])
        self._episode_length = list(state["episode_length"])


_SAVED = ("observation", "action", "reward", "not_done", "is_step", "age", "success")
