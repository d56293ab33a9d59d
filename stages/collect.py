"""Make offline data in the simulators: one Minari dataset per task, from experts, exploration or an earlier policy."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..datasets.schema import Behaviour, TaskSpec
from ..datasets.tasks import expand_names, resolve_name, task_spec
from ..pipeline.errors import ConfigError, StageError
from ..pipeline.fanout import JobFailure, run_jobs
from ..pipeline.stage import Context, Stage

if TYPE_CHECKING:
    from ..datasets.rollout import EpisodeResult

CHUNK = 20
"""Episodes per job: a few seconds of simulation, so that progress moves and the last jobs end together."""


@dataclass(frozen=True)
class CollectConfig:
    """What data to make."""

    tasks: list[str] = field(default_factory=list)
    """Names such as dmc/walker-run, metaworld/reach-v3, gymnasium/Pendulum-v1; mt30 and mt80 are TD-MPC2's sets."""
    episodes: int = 200
    """Per task."""
    seed: int = 0
    """With the task and an episode's number, determines that episode."""
    expert_noise: list[float] = field(default_factory=lambda: [0.0, 0.6])
    """Lowest and highest standard deviation of the noise on scripted experts, drawn once per episode."""
    random_share: float = 0.1
    """Share of a scripted expert's episodes that are uniformly random instead."""
    policy: str | None = None
    """Folder of a policies artifact whose policies act instead; tasks without a policy in it are refused."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ConfigError(f"episodes must be at least 1, found {self.episodes}")
        noise = self.expert_noise
        if len(noise) != 2 or not 0 <= noise[0] <= noise[1]:
            raise ConfigError(f"expert_noise must be two numbers 0 <= low <= high, found {noise}")
        if not 0 <= self.random_share <= 1:
            raise ConfigError(f"random_share must lie in [0, 1], found {self.random_share}")


@dataclass(frozen=True)
class _Job:
    task: str
    start: int
    stop: int
    config: CollectConfig
    policy: Path | None


class Collect(Stage):
    """One Minari dataset per task below `minari/`, and `datasets.json` that says what is in them."""

    Config = CollectConfig
    output_kind = "datasets"
    config: CollectConfig

    def check(self) -> None:
        if not self.config.tasks:
            raise ConfigError("collect.tasks is empty: name a task, for example tasks=[dmc/cartpole-balance]")
        names = _names(self.config)
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"collect.tasks names a task twice: {', '.join(repeated)}")
        if self.config.policy is not None:
            _policy_folders(Path(self.config.policy), names)

    def reads(self) -> Sequence[Path]:
        return [] if self.config.policy is None else [Path(self.config.policy) / "policies.json"]

    def run(self, context: Context) -> str:
        from ..datasets.collect import read_record, write_dataset

        config = self.config
        root = context.folder / "minari"
        names = _names(config)
        records = {name: record for name in names if (record := read_record(root, name)) is not None}
        policies = {} if config.policy is None else _policy_folders(Path(config.policy), names)
        jobs = [
            _Job(name, start, min(start + CHUNK, config.episodes), config, policies.get(name))
            for name in names
            if name not in records
            for start in range(0, config.episodes, CHUNK)
        ]
        played: dict[str, dict[int, list[EpisodeResult]]] = {name: {} for name in names}
        worked: dict[str, float] = {}
        total = config.episodes * len(names)
        with context.progress("collect", total=total, completed=config.episodes * len(records)) as progress:
            for index, outcome in run_jobs(_play, jobs, workers=context.workers):
                job = jobs[index]
                if isinstance(outcome, JobFailure):
                    raise StageError(
                        f"collecting {job.task!r}, episodes {job.start} to {job.stop - 1}: {outcome.error}; finished "
                        f"tasks are kept, so the same command continues\n{outcome.traceback}"
                    )
                spec, seconds, results = outcome
                chunks = played[job.task]
                chunks[job.start] = results
                worked[job.task] = worked.get(job.task, 0.0) + seconds
                progress.advance(len(results))
                if sum(len(chunk) for chunk in chunks.values()) < config.episodes:
                    continue
                episodes = [result for start in sorted(chunks) for result in chunks[start]]
                _refuse_if_all_failed(spec, episodes)
                settings = {**dataclasses.asdict(config), "seconds": round(worked[job.task], 3)}
                write_dataset(root, spec, _behaviour(spec, config), episodes, settings)
                del played[job.task]
                records[job.task] = read_record(root, job.task) or {}
                progress.note(job.task)
        return self._finish(context, names, records)

    def _finish(self, context: Context, names: Sequence[str], records: dict[str, dict[str, Any]]) -> str:
        tasks = {}
        for name in names:
            record = dict(records[name])
            seconds = record.pop("settings")["seconds"]
            tasks[name] = {"path": f"minari/{record['dataset_id']}", **record, "seconds": seconds}
            if record["failed_episodes"]:
                context.log.warning(
                    "%s: %d episodes failed and were left out: %s",
                    name,
                    record["failed_episodes"],
                    "; ".join(record["errors"]),
                )
        (context.folder / "datasets.json").write_text(json.dumps({"tasks": tasks}, indent=1))
        transitions = sum(record["transitions"] for record in tasks.values())
        episodes = sum(record["episodes"] for record in tasks.values())
        return f"{transitions:,} transitions in {episodes:,} episodes of {len(tasks)} tasks"


def _names(config: CollectConfig) -> list[str]:
    return [resolve_name(name) for name in expand_names(config.tasks)]


def _play(job: _Job) -> tuple[TaskSpec, float, list[EpisodeResult]]:
    """Play one chunk of a task's episodes, in order of their numbers. Runs in a worker process."""
    from ..datasets.collect import Variation, behaviour_act, episode_seed
    from ..datasets.rollout import play_episodes, policy_act

    start = time.perf_counter()
    spec = task_spec(job.task)
    numbers = range(job.start, job.stop)
    seeds = [episode_seed(job.config.seed, spec.name, number) for number in numbers]
    if job.policy is None:
        low, high = job.config.expert_noise
        act = behaviour_act(spec, numbers, job.config.seed, Variation((low, high), job.config.random_share))
        # These behaviours act one episode at a time, so more environments than one would gain nothing.
        lanes = 1
    else:
        from .policy import load_policy

        act, lanes = policy_act(load_policy(job.policy)), CHUNK
    results = dict(play_episodes(spec, act, seeds, record=True, lanes=lanes))
    return spec, time.perf_counter() - start, [results[index] for index in range(len(seeds))]


def _behaviour(spec: TaskSpec, config: CollectConfig) -> Behaviour:
    from ..datasets.collect import has_expert

    if config.policy is not None:
        return "policy"
    return "expert" if has_expert(spec) else "exploration"


def _policy_folders(artifact: Path, tasks: Sequence[str]) -> dict[str, Path]:
    """The folder of the first policy of each task in a policies artifact."""
    index = artifact / "policies.json"
    if not index.is_file():
        raise ConfigError(f"collect.policy: expected a policies artifact, found no {index}")
    folders: dict[str, Path] = {}
    for policy in json.loads(index.read_text())["policies"]:
        folders.setdefault(policy["task"], artifact / policy["path"])
    if missing := [task for task in tasks if task not in folders]:
        raise ConfigError(
            f"collect.policy: {artifact} has no policy for {', '.join(missing)}; it has {', '.join(sorted(folders))}"
        )
    return folders


def _refuse_if_all_failed(spec: TaskSpec, results: Sequence[EpisodeResult]) -> None:
    if all(result.episode is None for result in results):
        raise StageError(f"collecting {spec.name!r}: all {len(results)} episodes failed; the first: {results[0].error}")
