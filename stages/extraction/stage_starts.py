"""The stage starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datasets.schema import TaskSpec
from ...datasets.tables import find_names
from ...pipeline.artifact import remove
from ...pipeline.errors import StageError
from ...pipeline.jobs.fanout import MemberJobs, fan_out_members, pack_by_task
from ...pipeline.stage import Context, Input, Stage
from ...pipeline.wording import counted
from ..world_model.facts import ModelFacts, read_model_facts
from .config import StartsConfig

if TYPE_CHECKING:
    from ...datasets.schema import Episode
    from ..world_model.start_frames import StartFrames

CHUNK = 5
"""Episodes that are played at a time."""


class Starts(Stage):
    """Choose start states for imagination when no dataset is given.

    They are frames saved with the model, or frames of newly played episodes.
    """

    Config = StartsConfig
    inputs = {"world_model": Input("world_model", facts=read_model_facts)}
    output_kind = "starts"
    not_hashed = ("fanout",)
    config: StartsConfig

    def check_machine(self) -> None:
        self.config.fanout.check_machine(key="starts.fanout")

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
        from ...datasets.played import read_played
        from ..policy.episodes_job import PlaySettings, chunk_file, play_chunks

        config = self.config
        if unplayable := [spec.name for spec in specs if not spec.environment]:
            raise StageError(
                f"starts: no environment is known for {', '.join(unplayable)}, so no episodes can be played; select "
                "other tasks with starts.tasks=[...], or remove this stage and set inputs.store=PATH"
            )
        numbers = list(range(config.episodes))
        members: list[dict[str, Any]] = [
            {"task": spec.to_dict(), "numbers": numbers[first : first + CHUNK], "policy": None}
            for spec in specs
            for first in range(0, config.episodes, CHUNK)
        ]
        program = MemberJobs(
            {"behaviour": dataclasses.asdict(PlaySettings(config.seed)), "policies": {}},
            members,
            partial(
                pack_by_task,
                per_job=len(members) if config.fanout.kind.in_this_process else 0,
                slug=lambda member: TaskSpec.from_dict(member["task"]).slug,
            ),
        )
        (found,) = fan_out_members([program], play_chunks, context, config.fanout, hashed=[])
        episodes: dict[str, list[Episode]] = {spec.name: [] for spec in specs}
        for member, result in zip(members, found, strict=True):
            spec = TaskSpec.from_dict(member["task"])
            played = read_played(result / chunk_file(spec, member["numbers"]))
            episodes[spec.name] += [one.episode for one in played if one.episode is not None]
        if failed := [name for name, own in episodes.items() if not own]:
            for folder in {result.parent for result in found}:
                remove(folder)  # what is wrong may be put right
            raise StageError(f"starts: all {config.episodes} episodes of {', '.join(failed)} failed")
        frames = {}
        for spec in specs:
            behaviour = "expert" if has_expert(spec) else "exploration"
            frames[spec.name] = _frames(spec, episodes[spec.name], behaviour, config.frames, config.seed)
        count = min(len(one.observation_NO) for one in frames.values())
        # Equally many for every task: what is encoded of them is one tensor.
        return {name: one.draw(count, len(one.initial_BO), name, config.seed) for name, one in frames.items()}


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
