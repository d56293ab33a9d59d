"""The one loop that plays episodes: collecting data and evaluating policies are this with different actions.

Several environments of a task advance in lockstep in one process, so that a policy is called once per decision for all
of them. Decides what a failure costs: the episode in which it happened, and no other.

Dimension letters: B episodes being played, O observation, A action.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .schema import Episode, TaskSpec
from .tasks import make_environment
from .tasks.decisions import Decisions

if TYPE_CHECKING:
    import torch

LANES = 8
"""Environments that advance together. A batched policy call costs about the same for 8 rows as for 1.

A constant, because a policy's matrix products round differently for other batch sizes, and simulators amplify that."""

OF_THE_MACHINE = (MemoryError, OSError, EOFError)
"""What an environment raises for lack of memory or files, or when a process that it talks to is gone."""


class Act(Protocol):
    """Chooses the next action of several episodes at once."""

    def __call__(self, observation: np.ndarray, episode: np.ndarray, /) -> np.ndarray:
        """Actions [B, A] in [-1, 1] for observations [B, O] float32.

        `episode` [B] is each row's position in the `seeds` given to `play_episodes`, for what is kept per episode, such
        as a noise process or a plan. Rows come and go as episodes begin and end.
        """
        ...


@dataclass(frozen=True)
class EpisodeResult:
    """What one episode came to."""

    seed: int
    return_: float
    """Sum of rewards, up to the failure if there was one."""
    length: int
    """Decisions."""
    success_any: bool | None
    """Success after any decision; None where the task has no such notion."""
    success_last: bool | None
    """Success after the last decision."""
    error: str | None = None
    """One line, if something ended the episode before its time."""
    episode: Episode | None = None
    """Every transition, if recording was asked for and the episode completed."""


def play_episodes(
    spec: TaskSpec,
    act: Act,
    seeds: Sequence[int],
    *,
    record: bool = False,
    lanes: int = LANES,
    pool: list[Decisions] | None = None,
    heard: Callable[[Episode], None] | None = None,
) -> Iterator[tuple[int, EpisodeResult]]:
    """Play one episode per seed; yield (position in `seeds`, result) as episodes end.

    An environment that raises, or whose reward or observation is not finite, ends only its own episode; it is thrown
    away and built anew. What `act` raises is not caught, since it concerns every episode; nor is what says that the
    machine fails, since the same episode may be played later.

    Args:
        spec: the task, whose environments `make_environment` builds.
        act: chooses the actions.
        seeds: one per episode; with the actions, a seed determines its episode.
        record: keep every transition.
        lanes: most environments that advance together.
        pool: environments of this task left by an earlier call; used first, and refilled as episodes end. Building one
            takes as long as some hundred decisions.
        heard: called after every decision that did not fail, with the piece of its episode that is this decision, for
            those who learn while episodes are under way.

    Raises:
        TaskError: an environment cannot be built.
        MemoryError, OSError, EOFError: memory, files or a process of the simulator are gone.
    """
    pool = [] if pool is None else pool
    waiting = deque(enumerate(seeds))
    playing: list[_Running] = []
    while waiting or playing:
        while waiting and len(playing) < lanes:
            index, seed = waiting.popleft()
            playing.append(_Running(index, seed, pool.pop() if pool else make_environment(spec)))
            playing[-1].reset()
        started = [running for running in playing if not running.over]
        if started:
            observation = np.stack([running.observations[-1] for running in started])
            actions = act(observation, np.array([running.index for running in started]))
            for running, action in zip(started, actions, strict=True):
                running.step(np.asarray(action, np.float32))
                if heard is not None and running.error is None:
                    heard(running.latest())
        for running in [running for running in playing if running.over]:
            playing.remove(running)
            if running.error is None:
                pool.append(running.environment)
            yield running.index, running.result(record)


def policy_act(policy: Any, device: str | torch.device = "cpu") -> Act:
    """The action of a Policy (`act(observation [B, O] tensor) -> action [B, A] tensor`) as an Act.

    A policy that has `begin` is handed back, with each observation, what it remembers of that row's episode: take a new
    Act for each call of `play_episodes`, since episodes are told apart by their position.

    Args:
        device: where the policy computes; one other than cpu needs a policy that is a torch module.
    """
    import torch

    policy = policy if torch.device(device).type == "cpu" else policy.to(device)
    begin = getattr(policy, "begin", None)
    memories: dict[int, Any] = {}

    def act(observation: np.ndarray, episode: np.ndarray, /) -> np.ndarray:
        nonlocal memories
        with torch.inference_mode():
            rows = torch.from_numpy(observation).to(device)
            if begin is None:
                return policy.act(rows).cpu().numpy()
            # Every episode that is under way has a row, so those of the others can be forgotten.
            memories = {index: memories[index] if index in memories else begin(index) for index in episode.tolist()}
            return policy.act(rows, list(memories.values())).cpu().numpy()

    return act


@dataclass
class _Running:
    """An episode under way."""

    index: int
    seed: int
    environment: Decisions
    observations: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    success: list[bool] = field(default_factory=list)
    terminated: bool = False
    over: bool = False
    error: str | None = None

    def reset(self) -> None:
        # Simulators raise what they like, and one broken episode must not end the others.
        try:
            observation, _ = self.environment.reset(seed=self.seed)
        except OF_THE_MACHINE:
            raise
        except Exception as error:
            self._fail(error)
            return
        self._observe(observation)

    def step(self, action: np.ndarray) -> None:
        if not np.isfinite(action).all():
            self._stop(f"the action is not finite: {action.tolist()}")
            return
        try:
            observation, reward, self.terminated, truncated, info = self.environment.step(action)
        except OF_THE_MACHINE:
            raise
        except Exception as error:
            self._fail(error)
            return
        if not math.isfinite(reward):
            self._stop(f"the reward is {reward}")
            return
        self.actions.append(action)
        self.rewards.append(reward)
        if self.environment.task.reports_success:
            self.success.append(info["success"])
        self.over = self.terminated or truncated
        self._observe(observation)

    def _observe(self, observation: np.ndarray) -> None:
        self.observations.append(observation)
        if not np.isfinite(observation).all():
            column = int(np.flatnonzero(~np.isfinite(observation))[0])
            self._stop(f"observation column {column} is {observation[column]}")

    def latest(self) -> Episode:
        """The last decision alone."""
        reward = np.array(self.rewards[-1:], np.float32)
        return Episode(np.stack(self.observations[-2:]), np.stack(self.actions[-1:]), reward, self.terminated)

    def _fail(self, error: Exception) -> None:
        self._stop(" ".join(f"{type(error).__name__}: {error}".split()))

    def _stop(self, reason: str) -> None:
        self.error = f"{reason} (decision {len(self.actions)}, episode seed {self.seed})"
        self.over = True

    def result(self, record: bool) -> EpisodeResult:
        spec = self.environment.task
        known = spec.reports_success and bool(self.success)
        episode = None
        if record and self.error is None:
            episode = Episode(
                observations=np.stack(self.observations),
                actions=np.stack(self.actions),
                rewards=np.array(self.rewards, np.float32),
                terminated=self.terminated,
                success=np.array(self.success) if spec.reports_success else None,
                label=f"{spec.name}:seed_{self.seed}",
            )
        return EpisodeResult(
            seed=self.seed,
            return_=math.fsum(self.rewards),
            length=len(self.rewards),
            success_any=any(self.success) if known else None,
            success_last=self.success[-1] if known else None,
            error=self.error,
            episode=episode,
        )
