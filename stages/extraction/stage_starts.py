"""The stage starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...datasets.tables import find_names
from ...pipeline.errors import StageError
from ...pipeline.jobs.fanout import run_all
from ...pipeline.stage import Context, Input, Stage
from ...pipeline.wording import counted
from ..world_model.facts import ModelFacts, read_model_facts
from .config import StartsConfig

if TYPE_CHECKING:
    from ...datasets.schema import Episode, TaskSpec
    from ..world_model.start_frames import StartFrames

CHUNK = 5
"""Episodes per job."""


@dataclass(frozen=True)
class _Job:
    spec: TaskSpec
    numbers: Sequence[int]
    seed: int

    def __str__(self) -> str:
        return f"starts: playing {self.spec.name!r}"


class Starts(Stage):
    """Choose start states for imagination when no dataset is given.

    They are frames saved with the model, or frames of newly played episodes.
    """

    Config = StartsConfig
    inputs = {"world_model": Input("world_model", facts=read_model_facts)}
    output_kind = "starts"
    config: StartsConfig

    def check_input(self, name: str, folder: Path, facts: ModelFacts | None) -> None:
        if facts is None:
            return
        facts.check_single("starts", folder)
        if facts.tasks is not None:
            find_names(facts.tasks, self.config.tasks, folder)

    def _tasks(self, folder: Path) -> list[TaskSpec]:
        from ...datasets.schema import read_table
        from ...datasets.tables import find_tasks

        return find_tasks(read_table(folder), self.config.tasks, folder)

    def run(self, context: Context) -> str:
        from ..world_model.start_frames import has_frames, load_frames, save_frames

        config, folder = self.config, context.input("world_model")
        specs = self._tasks(folder)
        if config.source == "model" or (config.source == "auto" and has_frames(folder)):
            frames, source = load_frames(folder, specs), "saved with the model"
        else:
            frames = self._played(specs, context)
            source = f"from {counted(config.episodes, 'episode')} played per task"
        save_frames(frames, context.folder, source)
        count = min(len(one.observation_NO) for one in frames.values())
        return f"{count:,} frames of each of {counted(len(frames), 'task')}, {source}"

    def _played(self, specs: Sequence[TaskSpec], context: Context) -> dict[str, StartFrames]:
        from ...datasets.collect import has_expert

        config = self.config
        if unplayable := [spec.name for spec in specs if not spec.environment]:
            raise StageError(
                f"starts: no environment is known for {', '.join(unplayable)}, so no episodes can be played; select "
                "other tasks with starts.tasks=[...], or remove this stage and set inputs.store=PATH"
            )
        jobs = [
            _Job(spec, range(first, min(first + CHUNK, config.episodes)), config.seed)
            for spec in specs
            for first in range(0, config.episodes, CHUNK)
        ]
        episodes: dict[str, list[tuple[int, Episode]]] = {spec.name: [] for spec in specs}
        with context.progress("starts", total=config.episodes * len(specs)) as progress:
            for job, completed in run_all(_play, jobs, workers=context.workers):
                episodes[job.spec.name] += completed
                progress.advance(len(job.numbers))
        found = {}
        for spec in specs:
            if not (own := [episode for _, episode in sorted(episodes[spec.name], key=lambda pair: pair[0])]):
                raise StageError(f"starts: all {config.episodes} episodes of {spec.name!r} failed")
            behaviour = "expert" if has_expert(spec) else "exploration"
            found[spec.name] = _frames(spec, own, behaviour, config.frames, config.seed)
        count = min(len(one.observation_NO) for one in found.values())
        # Equally many for every task: what is encoded of them is one tensor.
        return {name: one.draw(count, len(one.initial_BO), name, config.seed) for name, one in found.items()}


def _play(job: _Job) -> list[tuple[int, Episode]]:
    """The episodes that completed, by number. Runs in a worker process."""
    from ...datasets.collect import Variation, behaviour_act, episode_seed
    from ...datasets.rollout import play_episodes

    seeds = [episode_seed(job.seed, job.spec.name, number) for number in job.numbers]
    act = behaviour_act(job.spec, job.numbers, job.seed, Variation())
    results = dict(play_episodes(job.spec, act, seeds, record=True, lanes=1))
    return [(job.numbers[i], one.episode) for i, one in sorted(results.items()) if one.episode is not None]


def _frames(spec: TaskSpec, episodes: Sequence[Episode], behaviour: str, count: int, seed: int) -> StartFrames:
    """At most `count` frames of these episodes, drawn at random."""
    import numpy as np
    import torch

    from ..world_model.start_frames import StartFrames

    rewards = np.concatenate([episode.rewards for episode in episodes])
    everything = StartFrames(
        torch.from_numpy(np.concatenate([episode.observations[:-1] for episode in episodes])),
        torch.from_numpy(np.concatenate([episode.actions for episode in episodes])),
        torch.from_numpy(np.stack([episode.observations[0] for episode in episodes])),
        float(np.sqrt(np.square(rewards, dtype=np.float64).mean())),
        behaviour,
    )
    return everything.draw(count, len(episodes), spec.name, seed)
