"""The stage collect."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datasets.facts import DataFacts
from ...datasets.schema import Behaviour, TaskSpec
from ...datasets.tasks import expand_names, resolve_name, task_spec
from ...pipeline.artifact import remove, without
from ...pipeline.errors import ConfigError, StageError
from ...pipeline.jobs.fanout import MemberJobs, fan_out_members, pack_by_task
from ...pipeline.paths import user_path
from ...pipeline.stage import Context, Stage
from ...pipeline.wording import counted
from ..policy.policy_index import POLICIES_FILE, PolicyIndex
from .config import CHUNK, CollectConfig

if TYPE_CHECKING:
    from ...datasets.rollout import EpisodeResult


class Collect(Stage):
    """Collect Minari datasets in simulators, with scripted experts, exploration or earlier policies."""

    Config = CollectConfig
    output_kind = "datasets"
    # Where the policies are; which they are is seen by `reads`.
    not_hashed = ("policy", "fanout")
    calls = ("policies",)
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
        self.config.fanout.check_machine(key="collect.fanout")
        for name in _names(self.config):
            task_spec(name)  # builds what a package may be missing for

    def reads(self) -> Sequence[Path]:
        return [] if self.config.policy is None else [user_path(self.config.policy) / POLICIES_FILE]

    def run(self, context: Context) -> str:
        from ...datasets.collect import read_record
        from ...datasets.played import read_played
        from ..policy.episodes_job import chunk_file, play_chunks

        config = self.config
        root = context.folder / "minari"
        names = _names(config)
        policies: Mapping[str, Sequence[Path | None]] = _policy_folders(config, names)
        counts = {name: _episodes(task_spec(name), config) for name in names}
        turns = {name: _in_turn(policies.get(name, [None]), counts[name]) for name in names}
        played: dict[str, dict[int, EpisodeResult]] = {name: {} for name in names}
        for folder, _ in self.earlier(context, ["tasks", "episodes", "behaviour_mixture"]):
            for name in names:
                if not played[name] and read_record(root, name) is None:
                    played[name] = self._take_over(folder / "minari", root, name, turns[name])
        program = self._program(played, turns, [name for name in names if read_record(root, name) is None])
        (found,) = fan_out_members([program], play_chunks, context, config.fanout, hashed=[])
        files: dict[str, list[tuple[Sequence[int], Path]]] = {name: [] for name in names}
        for member, result in zip(program.members, found, strict=True):
            spec, numbers = TaskSpec.from_dict(member["task"]), member["numbers"]
            files[spec.name].append((numbers, result / chunk_file(spec, numbers)))
        failed: list[str] = []
        for name in names:
            if read_record(root, name) is None:
                own = played.pop(name)
                for numbers, file in files[name]:
                    own |= zip(numbers, read_played(file), strict=True)
                failed += self._write(root, task_spec(name), [own[number] for number in range(counts[name])])
        # Their episodes are in the datasets now; what is wrong with those that failed may be put right.
        remove(context.jobs)
        if failed:
            raise StageError("; ".join(failed))
        return self._finish(context, names, {name: read_record(root, name) or {} for name in names})

    def _program(
        self,
        played: Mapping[str, Mapping[int, EpisodeResult]],
        turns: Mapping[str, Sequence[tuple[Path | None, range]]],
        names: Sequence[str],
    ) -> MemberJobs:
        """The episodes of the tasks `names` that are still to be played, in chunks."""
        from ...datasets.collect import Variation
        from ..policy.episodes_job import PlaySettings

        config, folders = self.config, dict[str, str]()
        contents: dict[Path, str] = {}
        if config.policy is not None:
            artifact = user_path(config.policy)
            contents = {artifact / path: digest for path, digest in PolicyIndex.read(artifact).contents().items()}
        members = []
        for name in names:
            for policy, numbers in turns[name]:
                digest = None
                if policy is not None:
                    digest = contents[policy] or str(policy)
                    folders[digest] = str(policy.absolute())
                missing = [number for number in numbers if number not in played[name]]
                members += [
                    {"task": task_spec(name).to_dict(), "numbers": chunk, "policy": digest}
                    for chunk in (missing[first : first + CHUNK] for first in range(0, len(missing), CHUNK))
                ]
        (low, high), (quiet, loud) = config.expert_noise, config.policy_noise
        variation = Variation((low, high), config.random_share)
        behaviour = PlaySettings(config.seed, variation, (quiet, loud), config.policy_random_share, CHUNK)
        return MemberJobs(
            {"behaviour": dataclasses.asdict(behaviour), "policies": folders},
            members,
            partial(
                pack_by_task,
                per_job=len(members) if config.fanout.kind.in_this_process else 0,
                slug=lambda member: TaskSpec.from_dict(member["task"]).slug,
            ),
            ["policies"],
        )

    def _write(self, root: Path, spec: TaskSpec, episodes: Sequence[EpisodeResult]) -> list[str]:
        """Write a task's dataset; returns what is wrong if all of its episodes failed."""
        from ...datasets.collect import write_dataset

        if all(result.episode is None for result in episodes):
            return [f"collecting {spec.name!r}: all {len(episodes)} episodes failed; the first: {episodes[0].error}"]
        settings = without(dataclasses.asdict(self.config), ["tasks", "behaviour_mixture", *self.not_hashed])
        settings["episodes"] = len(episodes)
        write_dataset(root, spec, _behaviour(spec, self.config), episodes, settings)
        return []

    def _take_over(
        self, source: Path, root: Path, name: str, turns: Sequence[tuple[Path | None, range]]
    ) -> dict[int, EpisodeResult]:
        """What an earlier artifact has of a task, where only tasks and numbers of episodes were others: all of its
        dataset, or episodes by their numbers."""
        from ...datasets.collect import episode_seed, read_record, read_results, take_dataset

        record, spec, seed = read_record(source, name), task_spec(name), self.config.seed
        if record is None:
            return {}
        count = _episodes(spec, self.config)
        if record["episodes"] + record["failed_episodes"] == count:
            take_dataset(source, root, name)
            return {}
        results = read_results(source, spec, [episode_seed(seed, name, number) for number in range(count)])
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


def _behaviour(spec: TaskSpec, config: CollectConfig) -> Behaviour:
    from ...datasets.collect import has_expert

    if config.policy is not None:
        return "policy"
    return "expert" if has_expert(spec) else "exploration"


def _episodes(spec: TaskSpec, config: CollectConfig) -> int:
    return max(1, round(config.episodes * config.behaviour_mixture.get(_behaviour(spec, config), 1)))


def _in_turn(policies: Sequence[Path | None], episodes: int) -> list[tuple[Path | None, range]]:
    """Each policy with the numbers of its episodes: every n-th, where there are n."""
    return [(policy, range(first, episodes, len(policies))) for first, policy in enumerate(policies)]


def _policy_folders(config: CollectConfig, tasks: Sequence[str]) -> dict[str, list[Path]]:
    """The folders of the policies that act in each task, one per seed; empty if none is to."""
    if config.policy is None:
        return {}
    artifact = user_path(config.policy)
    if not (artifact / POLICIES_FILE).is_file():
        raise ConfigError(f"collect.policy: expected a policies artifact, found no {artifact / POLICIES_FILE}")
    return PolicyIndex.read(artifact).folders(tasks, config.policy_algorithm, "collect.policy_algorithm")
