"""What the jobs of bpo and bpo_online have finished, as one artifact of policies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...datasets.schema import TaskSpec
from ...pipeline.artifact import link
from ...pipeline.reading import read_made
from ..policy.policy_index import write_index
from .config import FINISHED_FILE


def gather_finished(folder: Path, tasks: Iterable[TaskSpec], programs: Sequence[Mapping[int, Path]]) -> None:
    """Link the policies, and write policies.json and training.csv: program by program, rows by iteration.

    Args:
        programs: the result that each seed is in, for each task and gradient.
    """
    import pandas as pd

    entries: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    for results in programs:
        finished = {
            result: read_made(result / FINISHED_FILE, dict[str, Any]) for result in dict.fromkeys(results.values())
        }
        rows = []
        for seed, result in results.items():
            (entry,) = [one for one in finished[result]["policies"] if one["seed"] == seed]
            link(result / entry["path"], folder / entry["path"])
            entries.append(entry)
            rows += [row for row in finished[result]["curves"] if row["seed"] == seed]
        curves += sorted(rows, key=lambda row: row["iteration"])
    write_index(folder, tasks, entries)
    pd.DataFrame(curves).to_csv(folder / "training.csv", index=False)
