"""A job of the stages collect and starts: episodes played in chunks, side by side in processes, a file for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...datasets.collect import Variation, behaviour_act, episode_seed, noisy
from ...datasets.played import write_played
from ...datasets.rollout import kept_environments, play_episodes, policy_act
from ...datasets.schema import TaskSpec
from ...pipeline.jobs.job import JobContext
from ...pipeline.jobs.pool import run_all


@dataclass(frozen=True)
class PlaySettings:
    """What decides an episode, beside its task and its number."""

    seed: int
    variation: Variation = field(default_factory=Variation)
    """Of scripted experts."""
    policy_noise: tuple[float, float] = (0.0, 0.0)
    policy_random_share: float = 0.0
    """Exploration of policies (see `datasets.collect.noisy`)."""
    lanes: int = 1
    """Episodes that a policy plays at a time: a batch of another size rounds differently."""


@dataclass(frozen=True)
class _Chunk:
    behaviour: PlaySettings
    spec: TaskSpec
    numbers: Sequence[int]
    """Of its episodes."""
    policy: Path | None
    file: Path

    def __str__(self) -> str:
        return f"playing {self.spec.name!r}, episodes {self.numbers[0]} to {self.numbers[-1]}"


def chunk_file(spec: TaskSpec, numbers: Sequence[int]) -> str:
    """Where a job leaves the episodes of a task with these numbers."""
    return f"{spec.slug}/{numbers[0]}_{numbers[-1]}.npz"


def play_chunks(payload: Mapping[str, Any], context: JobContext) -> None:
    """Play the members, each into its `chunk_file`. Those that an interrupted attempt has finished are kept.

    Args:
        payload: members (task as a TaskSpec's dict, numbers of its episodes, digest of the policy or null), policies
            (folders by digest), behaviour (a PlaySettings's dict).
    """
    given = dict(payload["behaviour"])
    behaviour = PlaySettings(**{**given, "variation": Variation(**given["variation"])})
    chunks = []
    for member in payload["members"]:
        policy = None if member["policy"] is None else Path(payload["policies"][member["policy"]])
        spec, numbers = TaskSpec.from_dict(member["task"]), member["numbers"]
        chunks.append(_Chunk(behaviour, spec, numbers, policy, context.folder / chunk_file(spec, numbers)))
    waiting = [chunk for chunk in chunks if not chunk.file.is_file()]
    total, left = (sum(len(chunk.numbers) for chunk in some) for some in (chunks, waiting))
    with context.progress("episodes", total=total, completed=total - left) as progress:
        for chunk, _ in run_all(_play, waiting, workers=context.workers):
            progress.advance(len(chunk.numbers))
            progress.note(chunk.spec.name)


def _play(chunk: _Chunk) -> None:
    """Play one chunk, in order of its numbers. Runs in a worker process."""
    spec, behaviour, numbers = chunk.spec, chunk.behaviour, chunk.numbers
    seeds = [episode_seed(behaviour.seed, spec.name, number) for number in numbers]
    if chunk.policy is None:
        act = behaviour_act(spec, numbers, behaviour.seed, behaviour.variation)
        # These behaviours act one episode at a time, so more environments than one would gain nothing.
        lanes = 1
    else:
        from .policy import load_policy  # imports torch

        low, high = behaviour.policy_noise
        act, lanes = policy_act(load_policy(chunk.policy)), behaviour.lanes
        if high or behaviour.policy_random_share:
            act = noisy(act, spec, numbers, behaviour.seed, (low, high), behaviour.policy_random_share)
    results = dict(play_episodes(spec, act, seeds, record=True, lanes=lanes, pool=kept_environments(spec)))
    write_played(chunk.file, [results[index] for index in range(len(seeds))])
