"""policies.json, the index of the policies in an artifact. Needs no torch, so that configurations can be checked
against it.

Written by hand, it lets a run evaluate policies made elsewhere (`inputs.policies=FOLDER`): a task may be given by its
name alone, and `path` may name a file in the folder (see `foreign`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...datasets.schema import TaskSpec
from ...datasets.tasks import task_spec
from ...pipeline.artifact import check_inside, digests_of, write_json
from ...pipeline.errors import CheckpointError, ConfigError, StageError
from ...pipeline.jobs.job import cpu_seconds, read_job
from ...pipeline.reading import decode, read_json, reading

POLICIES_FILE = "policies.json"
COSTS_FILE = "logs/costs.csv"
"""algorithm, task, seed, cpu_seconds."""
SHARES_FILE = "logs/cpu_shares.json"
"""In the result of a job that trains several policies: the share of its CPU time of each, by the policy's path."""


def policy_entry(algorithm: str, task: TaskSpec, seed: int, **facts: Any) -> dict[str, Any]:
    """The index entry of one policy, in the folder `<algorithm>/<task>/seed_<n>` of the artifact, with further
    `facts`."""
    path = f"{algorithm}/{task.slug}/seed_{seed}"
    return {"algorithm": algorithm, "task": task.name, "seed": seed, "path": path, **facts}


def write_index(artifact: Path, tasks: Iterable[TaskSpec], entries: Sequence[Mapping[str, Any]]) -> None:
    """Write policies.json.

    Args:
        tasks: the table that the policies were made with; some may have none.
    """
    write_json(artifact / POLICIES_FILE, {"tasks": [task.to_dict() for task in tasks], "policies": entries})


def write_costs(artifact: Path, entries: Sequence[Mapping[str, Any]], results: Sequence[Path]) -> None:
    """Write the CPU-seconds of training each policy: its share of its job's, an equal one without SHARES_FILE.

    Args:
        results: of the job that trained each policy.
    """
    path = artifact / COSTS_FILE
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["algorithm", "task", "seed", "cpu_seconds"])
        for entry, result in zip(entries, results, strict=True):
            share = 1 / len(read_job(result.parent)[1].get("members", [entry]))
            if (result / SHARES_FILE).is_file():
                share = read_json(result / SHARES_FILE, StageError)[entry["path"]]
            seconds = cpu_seconds(result.parent) * share
            writer.writerow([entry["algorithm"], entry["task"], entry["seed"], round(seconds, 3)])


@dataclass(frozen=True)
class PolicyEntry:
    """The required fields of an entry in policies.json."""

    algorithm: str
    task: str
    seed: int
    path: str


@dataclass(frozen=True)
class _Index:
    """The required fields of policies.json."""

    tasks: list[Any]
    policies: list[PolicyEntry]


@dataclass(frozen=True)
class PolicyIndex:
    """The content of policies.json."""

    artifact: Path
    tasks: list[TaskSpec]
    entries: list[dict[str, Any]]
    """algorithm, task, seed, path in the artifact, and further facts of the policy."""

    @classmethod
    def read(cls, artifact: Path) -> PolicyIndex:
        """Read policies.json. Raises CheckpointError if it is missing or malformed."""
        path = artifact / POLICIES_FILE
        if not path.exists():
            raise CheckpointError(f"{artifact}: expected {POLICIES_FILE}, the index of policies, which is missing")
        with reading(path, CheckpointError, "run its stage again"):
            values = read_json(path, CheckpointError, "run its stage again")
            for entry in decode(_Index, values).policies:
                check_inside(entry.path)
            tasks = [task_spec(task) if isinstance(task, str) else TaskSpec.from_dict(task) for task in values["tasks"]]
            return cls(artifact, tasks, values["policies"])

    def contents(self) -> dict[str, str]:
        """A digest of each policy's files by its path; empty where it has none."""
        return digests_of(self.artifact, (entry["path"] for entry in self.entries))

    def folders(self, tasks: Iterable[str], algorithm: str, key: str) -> dict[str, list[Path]]:
        """The folders of an algorithm's policies by task, one per seed.

        Args:
            algorithm: empty for the first that is listed.
            key: of the configuration that names the algorithm, for the message.
        Raises:
            ConfigError: a task has none.
        """
        algorithm = algorithm or next((entry["algorithm"] for entry in self.entries), "")
        found: dict[str, list[Path]] = {task: [] for task in tasks}
        for entry in self.entries:
            if entry["algorithm"] == algorithm and entry["task"] in found:
                found[entry["task"]].append(self.artifact / entry["path"])
        if missing := [task for task, folders in found.items() if not folders]:
            known = sorted({f"{entry['algorithm']} for {entry['task']}" for entry in self.entries})
            raise ConfigError(
                f"{key}: {self.artifact} has no policy of {algorithm!r} for {', '.join(missing)}; it has: "
                f"{', '.join(known) or 'none at all'}"
            )
        return found
