"""Play episodes, for collecting data and for evaluating policies.

Several environments of a task advance in lockstep in one process, so that the policy is called once per step for all of
them. A failure costs only the episode in which it happened.

Dimension letters: B episodes being played, O observation, A action.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .schema import Episode, TaskSpec
from .tasks import make_environment
from .tasks.task_env import TaskEnv

if TYPE_CHECKING:
    import torch

LANES = 8
"""Environments that advance together. A batched policy call costs about the same for 8 rows as for 1.

This is a constant because a policy's matrix products round differently for other batch sizes, and simulators amplify
the difference.
"""

OF_THE_MACHINE = (MemoryError, OSError, EOFError)
"""Exceptions of an environment that mean the machine lacks memory or files, or lost a simulator process."""


class Act(Protocol):
    """Chooses the next actions of several episodes."""

    def __call__(self, observation: np.ndarray, episode: np.ndarray, /) -> np.ndarray:
        """Return actions [B, A] in [-1, 1] for observations [B, O] float32.

        `episode` [B] is the position of each row in the `seeds` of `play_episodes`, to keep state per episode, such as
        a noise process or a plan. Rows appear and disappear as episodes start and end.
        """
        ...


@dataclass(frozen=True)
class EpisodeResult:
    """Result of one episode."""

    seed: int
    return_: float
    """Sum of rewards; up to the failure if the episode failed."""
    length: int
    """Number of steps."""
    success_any: bool | None
    """Success after any step; None if the task does not report success."""
    success_last: bool | None
    """Success after the last step."""
    error: str | None = None
    """One line if the episode failed."""
    episode: Episode | None = None
    """All transitions, if they were recorded and the episode completed."""


def play_episodes(
    spec: TaskSpec,
    act: Act,
    seeds: Sequence[int],
    *,
    record: bool = False,
    lanes: int = LANES,
    pool: list[TaskEnv] | None = None,
    heard: Callable[[Episode], None] | None = None,
) -> Iterator[tuple[int, EpisodeResult]]:
    """Play one episode per seed; yield (position in `seeds`, result) as episodes end.

    An environment that raises, or returns a non-finite reward or observation, ends only its own episode; it is
    discarded and rebuilt. Exceptions of `act` propagate, because they concern every episode; so do failures of the
    machine, because the same episode may be played later.

    Args:
        spec: the task, whose environments `make_environment` builds.
        act: chooses the actions.
        seeds: one per episode; with the actions, a seed determines its episode.
        record: keep every transition.
        lanes: maximum number of environments that advance together.
        pool: environments of this task left by an earlier call; used first, and refilled as episodes end. Building one
            takes as long as some hundred steps.
        heard: called after every successful step with that step as an Episode, for learning during episodes.

    Raises:
        TaskError: an environment cannot be built.
        MemoryError, OSError, EOFError: memory, files or a simulator process are gone.
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
            observation = np.array([running.observations[-1] for running in started])
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


def kept_environments(spec: TaskSpec) -> list[TaskEnv]:
    """A pool for `play_episodes` that lasts from one call to the next in this process, until another task is played."""
    return _pool(json.dumps(spec.to_dict(), sort_keys=True))


@lru_cache(maxsize=1)
def _pool(_spec: str) -> list[TaskEnv]:
    return []


def policy_act(policy: Any, device: str | torch.device = "cpu") -> Act:
    """Wrap a Policy (`act(observation [B, O] tensor) -> action [B, A] tensor`) as an Act.

    A policy with `begin` gets its per-episode memory back with each observation. Use a new Act for each call of
    `play_episodes`, because episodes are identified by their position.

    Args:
        device: device of the policy; devices other than cpu need a policy that is a torch module.
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
            # Every running episode has a row, so memories of other episodes can be dropped.
            memories = {index: memories[index] if index in memories else begin(index) for index in episode.tolist()}
            return policy.act(rows, list(memories.values())).cpu().numpy()

    return act


@dataclass
class _Running:
    """An episode being played."""

    index: int
    seed: int
    environment: TaskEnv
    observations: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    success: list[bool] = field(default_factory=list)
    terminated: bool = False
    over: bool = False
    error: str | None = None

    def reset(self) -> None:
        # Simulators may raise anything, and one broken episode must not end the others.
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
        """The last step as an Episode."""
        reward = np.array(self.rewards[-1:], np.float32)
        return Episode(np.stack(self.observations[-2:]), np.stack(self.actions[-1:]), reward, self.terminated)

    def _fail(self, error: Exception) -> None:
        self._stop(" ".join(f"{type(error).__name__}: {error}".split()))

    def _stop(self, reason: str) -> None:
        self.error = f"{reason} (step {len(self.actions)}, episode seed {self.seed})"
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
