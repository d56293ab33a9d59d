"""The stage collect."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datasets.facts import DataFacts
from ...datasets.schema import Behaviour, TaskSpec
from ...datasets.tasks import expand_names, resolve_name, task_spec
from ...pipeline.artifact import Manifest, without
from ...pipeline.errors import ConfigError, StageError
from ...pipeline.jobs.fanout import run_all
from ...pipeline.paths import user_path
from ...pipeline.stage import Context, Stage
from ...pipeline.wording import counted
from ..policy.policy_index import POLICIES_FILE, PolicyIndex
from .config import CollectConfig

if TYPE_CHECKING:
    from ...datasets.rollout import EpisodeResult

CHUNK = 20
"""Episodes per job: a few seconds of simulation, so that progress moves and the last jobs end together."""


@dataclass(frozen=True)
class _Job:
    task: str
    numbers: Sequence[int]
    """Of its episodes."""
    config: CollectConfig
    policy: Path | None

    def __str__(self) -> str:
        return f"collecting {self.task!r}, episodes {self.numbers[0]} to {self.numbers[-1]}"


class Collect(Stage):
    """Collect Minari datasets in simulators, with scripted experts, exploration or earlier policies."""

    Config = CollectConfig
    output_kind = "datasets"
    # Where the policies are; which they are is seen by `reads`.
    not_hashed = ("policy",)
    config: CollectConfig

    def check(self) -> None:
        if not self.config.tasks:
            raise ConfigError("collect.tasks is empty: name a task, for example tasks=[dmc/cartpole-balance]")
        names = _names(self.config)
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"collect.tasks repeats a task: {', '.join(repeated)}")
        if self.config.policy is not None:
            _policy_folders(self.config, names)

    def promise(self, inputs: Mapping[str, Sequence[Any]]) -> DataFacts:
        return DataFacts(tuple(_names(self.config)))

    def check_machine(self) -> None:
        for name in _names(self.config):
            task_spec(name)  # builds what a package may be missing for

    def reads(self) -> Sequence[Path]:
        return [] if self.config.policy is None else [user_path(self.config.policy) / POLICIES_FILE]

    def run(self, context: Context) -> str:
        from ...datasets.collect import read_record

        config = self.config
        root = context.folder / "minari"
        names = _names(config)
        policies: Mapping[str, Sequence[Path | None]] = _policy_folders(config, names)
        turns = {name: _in_turn(policies.get(name, [None]), config.episodes) for name in names}
        played: dict[str, dict[int, EpisodeResult]] = {name: {} for name in names}
        for folder, manifest in self.earlier(context, ["tasks", "episodes"]):
            for name in names:
                if not played[name] and read_record(root, name) is None:
                    played[name] = self._take_over(folder / "minari", root, name, manifest, turns[name])
        for name, own in played.items():
            if len(own) == config.episodes:
                self._write(root, task_spec(name), own)
                own.clear()
        records = {name: record for name in names if (record := read_record(root, name)) is not None}
        jobs = [
            _Job(name, chunk, config, policy)
            for name in names
            if name not in records
            for policy, numbers in turns[name]
            for chunk in _chunks([number for number in numbers if number not in played[name]])
        ]
        total = config.episodes * len(names)
        done = config.episodes * len(records) + sum(map(len, played.values()))
        with context.progress("collect", total=total, completed=done) as progress:
            for job, (spec, results) in run_all(_play, jobs, workers=context.workers, kept="finished tasks"):
                own = played[job.task]
                own.update(zip(job.numbers, results, strict=True))
                progress.advance(len(results))
                if len(own) < config.episodes:
                    continue
                self._write(root, spec, own)
                del played[job.task]
                records[job.task] = read_record(root, job.task) or {}
                progress.note(job.task)
        return self._finish(context, names, records)

    def _write(self, root: Path, spec: TaskSpec, played: Mapping[int, EpisodeResult]) -> None:
        from ...datasets.collect import write_dataset

        episodes = [played[number] for number in range(self.config.episodes)]
        _refuse_if_all_failed(spec, episodes)
        settings = without(dataclasses.asdict(self.config), ["tasks", *self.not_hashed])
        write_dataset(root, spec, _behaviour(spec, self.config), episodes, settings)

    def _take_over(
        self, source: Path, root: Path, name: str, manifest: Manifest, turns: Sequence[tuple[Path | None, range]]
    ) -> dict[int, EpisodeResult]:
        """What an earlier artifact has of a task, where only `tasks` and `episodes` were others: all of its dataset, or
        episodes by their numbers."""
        from ...datasets.collect import episode_seed, read_record, read_results, take_dataset

        config = self.config
        if read_record(source, name) is None:
            return {}
        if manifest.config["episodes"] == config.episodes:
            take_dataset(source, root, name)
            return {}
        spec = task_spec(name)
        results = read_results(source, spec, [episode_seed(config.seed, name, n) for n in range(config.episodes)])
        known: dict[int, EpisodeResult] = {}
        for policy, numbers in turns:
            own = [number for number in numbers if number < len(results)]
            # What a policy's episodes are played with in one batch may change the last bit of its actions.
            whole = len(own) if policy is None else len(own) // CHUNK * CHUNK
            known |= {number: results[number] for number in own[:whole]}
        return known

    def _finish(self, context: Context, names: Sequence[str], records: dict[str, dict[str, Any]]) -> str:
        tasks = {}
        for name in names:
            record = without(records[name], ["settings"])
            tasks[name] = {"path": f"minari/{record['dataset_id']}", **record}
            if record["failed_episodes"]:
                context.log.warning(
                    "%s: episodes that failed and were skipped: %d (%s)",
                    name,
                    record["failed_episodes"],
                    "; ".join(record["errors"]),
                )
        (context.folder / "datasets.json").write_text(json.dumps({"tasks": tasks}, indent=1))
        transitions = sum(record["transitions"] for record in tasks.values())
        episodes = sum(record["episodes"] for record in tasks.values())
        return (
            f"{counted(transitions, 'transition')} in {counted(episodes, 'episode')} of {counted(len(tasks), 'task')}"
        )


def _names(config: CollectConfig) -> list[str]:
    return [resolve_name(name) for name in expand_names(config.tasks)]


def _play(job: _Job) -> tuple[TaskSpec, list[EpisodeResult]]:
    """Play one chunk of a task's episodes, in order of their numbers. Runs in a worker process."""
    from ...datasets.collect import Variation, behaviour_act, episode_seed, noisy
    from ...datasets.rollout import play_episodes, policy_act

    spec, config, numbers = task_spec(job.task), job.config, job.numbers
    seeds = [episode_seed(config.seed, spec.name, number) for number in numbers]
    if job.policy is None:
        low, high = config.expert_noise
        act = behaviour_act(spec, numbers, config.seed, Variation((low, high), config.random_share))
        # These behaviours act one episode at a time, so more environments than one would gain nothing.
        lanes = 1
    else:
        from ..policy.policy import load_policy

        low, high = config.policy_noise
        act, lanes = policy_act(load_policy(job.policy)), CHUNK
        if high or config.policy_random_share:
            act = noisy(act, spec, numbers, config.seed, (low, high), config.policy_random_share)
    results = dict(play_episodes(spec, act, seeds, record=True, lanes=lanes))
    return spec, [results[index] for index in range(len(seeds))]


def _behaviour(spec: TaskSpec, config: CollectConfig) -> Behaviour:
    from ...datasets.collect import has_expert

    if config.policy is not None:
        return "policy"
    return "expert" if has_expert(spec) else "exploration"


def _in_turn(policies: Sequence[Path | None], episodes: int) -> list[tuple[Path | None, range]]:
    """Each policy with the numbers of its episodes: every n-th, where there are n."""
    return [(policy, range(first, episodes, len(policies))) for first, policy in enumerate(policies)]


def _chunks(numbers: Sequence[int]) -> list[Sequence[int]]:
    return [numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)]


def _policy_folders(config: CollectConfig, tasks: Sequence[str]) -> dict[str, list[Path]]:
    """The folders of the policies that act in each task, one per seed; empty if none is to."""
    if config.policy is None:
        return {}
    artifact = user_path(config.policy)
    if not (artifact / POLICIES_FILE).is_file():
        raise ConfigError(f"collect.policy: expected a policies artifact, found no {artifact / POLICIES_FILE}")
    return PolicyIndex.read(artifact).folders(tasks, config.policy_algorithm, "collect.policy_algorithm")


def _refuse_if_all_failed(spec: TaskSpec, results: Sequence[EpisodeResult]) -> None:
    if all(result.episode is None for result in results):
        raise StageError(f"collecting {spec.name!r}: all {len(results)} episodes failed; the first: {results[0].error}")
