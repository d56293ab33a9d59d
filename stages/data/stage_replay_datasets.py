"""The stage replay_datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...pipeline.errors import StageError
from ...pipeline.stage import Context, Input, Stage
from ...pipeline.wording import counted
from ..policy.policy_index import PolicyIndex
from .config import ReplayDatasetsConfig

if TYPE_CHECKING:
    from ...datasets.rollout import EpisodeResult
    from ...datasets.schema import TaskSpec


class ReplayDatasets(Stage):
    """Convert the replay buffers of mrq_online or baselines into Minari datasets.

    One dataset per task holds the episodes of all seeds.
    """

    Config = ReplayDatasetsConfig
    inputs = {"policies": Input("policies")}
    output_kind = "datasets"
    run_keys = ()
    config: ReplayDatasetsConfig

    def run(self, context: Context) -> str:
        from ...datasets.collect import read_record, write_dataset

        artifact = context.input("policies")
        index = PolicyIndex.read(artifact)
        specs = {spec.name: spec for spec in index.tasks}
        replays = self._replays(index)
        root = context.folder / "minari"
        tasks = {}
        with context.progress("write datasets", total=len(replays)) as progress:
            for name, entries in replays.items():
                record = read_record(root, name)
                if record is None:
                    results = [result for entry in entries for result in _episodes(artifact, entry, specs[name])]
                    settings = {"policies": str(artifact), "algorithm": entries[0]["algorithm"]}
                    behaviour: Any = self.config.behaviour
                    write_dataset(root, specs[name], behaviour, results, settings)
                    record = read_record(root, name) or {}
                record.pop("settings")
                tasks[name] = {"path": f"minari/{record['dataset_id']}", **record}
                progress.advance(1)
                progress.note(name)
        (context.folder / "datasets.json").write_text(json.dumps({"tasks": tasks}, indent=1))
        transitions = sum(record["transitions"] for record in tasks.values())
        episodes = sum(record["episodes"] for record in tasks.values())
        return (
            f"{counted(transitions, 'transition')} in {counted(episodes, 'episode')} of {counted(len(tasks), 'task')}"
        )

    def _replays(self, index: PolicyIndex) -> dict[str, list[dict[str, Any]]]:
        """Policies with a replay by task."""
        wanted = self.config.algorithm
        kept = [entry for entry in index.entries if "episodes" in entry and wanted in ("", entry["algorithm"])]
        if not kept:
            there = ", ".join(sorted({entry["algorithm"] for entry in index.entries}))
            raise StageError(
                f"replay_datasets: {index.artifact} has no replay buffer{wanted and f' of {wanted!r}'} (policies: "
                f"{there}); create it with mrq_online.keep_replay=true or baselines.keep_replay=true"
            )
        if len(several := sorted({entry["algorithm"] for entry in kept})) > 1:
            raise StageError(
                f"replay_datasets: {index.artifact} has replay buffers of {', '.join(several)}; choose one with "
                f"replay_datasets.algorithm={several[0]}"
            )
        by_task: dict[str, list[dict[str, Any]]] = {}
        for entry in kept:
            by_task.setdefault(entry["task"], []).append(entry)
        names = self.config.tasks or list(by_task)
        if missing := [name for name in names if name not in by_task]:
            raise StageError(
                f"replay_datasets.tasks: no replay buffer of {', '.join(missing)}, only of {', '.join(by_task)}"
            )
        return {name: by_task[name] for name in names}


def _episodes(artifact: Path, entry: dict[str, Any], spec: TaskSpec) -> list[EpisodeResult]:
    from ...datasets.recorded import read_episodes
    from ...datasets.rollout import EpisodeResult

    label = f"{entry['algorithm']}:seed_{entry['seed']}"
    return [
        EpisodeResult(
            seed=entry["seed"],
            return_=float(episode.rewards.sum()),
            length=len(episode),
            success_any=None if episode.success is None else bool(episode.success.any()),
            success_last=None if episode.success is None else bool(episode.success[-1]),
            episode=episode,
        )
        for episode in read_episodes(artifact / entry["episodes"], label, spec.reports_success)
    ]
