"""What `orrery inspect PATH` prints: whatever the path is, what it holds, in one screen.

Contents are plain values, which `render` draws and `--json` prints whole: a list is a table, everything else a fact.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from ...pipeline import artifact
from ...pipeline.artifact import Manifest
from ...pipeline.errors import DatasetError, StageError
from ...pipeline.reading import decode, read_json, reading
from ...pipeline.run_folder import RUN_FILE, read_attempt
from ...pipeline.status import read_run_file, stage_rows
from ...pipeline.study.command import read_study_status
from ...pipeline.study.study import is_study
from ...pipeline.tables import facts_table, rows_table
from ...pipeline.wording import counted
from ..evaluation.scores import SUMMARY_FILE, Summary

if TYPE_CHECKING:
    from ...datasets.formats.reader import EpisodeReader
    from ...datasets.schema import Episode

SHOWN_ROWS = 8
"""Of a table; the others are counted."""
SHOWN_STEPS = 3
SHOWN_NUMBERS = 4
"""Of an observation or action."""

Contents = dict[str, Any]


def describe(path: Path) -> Contents:
    """Return what a run, a study, an artifact, a dataset or a file of weights holds.

    Args:
        path: the folder of a run, a study or an artifact, a .safetensors file, or a dataset as `pack` reads it.
    Raises:
        StageError: it is none of these.
        DatasetError: it is a dataset that cannot be read.
    """
    if is_study(path):
        return read_study_status(path)
    if (path / RUN_FILE).is_file():
        return _describe_run(path)
    if (path / artifact.MANIFEST).is_file():
        return _describe_artifact(path)
    if path.suffix == ".safetensors" and path.is_file():
        return _describe_weights([path])
    if path.is_dir() and (weights := sorted(path.glob("*.safetensors"))):
        return _describe_files(path) | _describe_weights(weights)
    if (path.parent / RUN_FILE).is_file():
        return _describe_unfinished(path)
    from ...datasets.formats.sources import open_reader

    try:
        return _describe_dataset(open_reader(str(path)))
    except DatasetError as error:
        raise StageError(
            f"{error}\n`orrery inspect` also reads runs, artifacts (RUN/pack) and .safetensors files"
        ) from error


def render(contents: Mapping[str, Any]) -> RenderableType:
    """The facts, then each table with its first rows."""
    facts = {name: value for name, value in contents.items() if not _is_table(value)}
    parts: list[RenderableType] = [facts_table(facts)]
    for rows in (value for value in contents.values() if _is_table(value)):
        parts += [Text(""), rows_table(rows, most=SHOWN_ROWS)]
    if any(len(value) > SHOWN_ROWS for value in contents.values() if _is_table(value)):
        parts.append(Text("--json prints all rows"))
    return Group(*parts)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _describe_unfinished(path: Path) -> Contents:
    """A stage of a run that has no artifact, or a folder beside its stages."""
    run_dir, name = path.parent, path.name.partition(".")[0]
    row = next((row for row in stage_rows(run_dir) if row["stage"] == name), None)
    if row is None:
        listed = f"orrery status {run_dir} lists its stages"
        raise StageError(f"{path}: the run in {run_dir} has no stage {name!r}; {listed}")
    found: Contents = {"artifact": f"stage {name} of the run in {run_dir} has no artifact: {row['status']}"}
    if row["seconds"]:
        found["seconds"] = row["seconds"]
    if row["result"]:
        found["result"] = row["result"]
    if read_attempt(run_dir / name):
        found["checkpoints"] = "kept; the same command continues it"
    return found | {"see": f"orrery status {run_dir} and {run_dir / 'log.txt'}"}


def _describe_run(folder: Path) -> Contents:
    record, stages = read_run_file(folder), []
    for row in stage_rows(folder):
        made = folder / row["stage"]
        manifest = artifact.read_manifest(made) if made.is_dir() else None
        more = {"kind": manifest.kind, "bytes": _bytes(manifest)} if manifest else {"kind": "", "bytes": 0}
        stages.append({"stage": row["stage"], "status": row["status"], **more, **row})
    return {"experiment": record["experiment"], "settings": " ".join(record["overrides"]) or "-", "stages": stages}


def _describe_artifact(folder: Path) -> Contents:
    manifest = artifact.read_manifest(folder)
    if manifest is None:
        raise StageError(f"{folder} has no {artifact.MANIFEST}")
    artifact.verify_quick(folder, manifest.kind)
    found: Contents = {
        "kind": manifest.kind,
        "stage": manifest.stage,
        "created": manifest.created,
        "seconds": manifest.seconds,
        "result": manifest.summary,
    }
    for name, records in ((name, many) for name, many in manifest.inputs.items() if many):
        found[f"input {name}"] = [f"{record.path} ({record.digest[:12]})" for record in records]
    found["versions"] = {name: one for name, one in manifest.versions.items() if name != artifact.SOURCE}
    found |= _describe_files(folder)
    if weights := sorted(folder.glob("*.safetensors")):
        found |= _describe_weights(weights)
    largest = sorted(manifest.files.items(), key=lambda item: -item[1].bytes)
    return found | {"files": [{"file": path, "bytes": record.bytes} for path, record in largest]}


def _describe_files(folder: Path) -> Contents:
    """What the files say by which stages describe their artifacts."""
    found: Contents = {}
    for file, describe_file in _CONTENTS.items():
        if (folder / file).is_file():
            with reading(folder / file, StageError):
                found |= describe_file(read_json(folder / file, StageError))
    return found


def _describe_collected(datasets: Mapping[str, Any]) -> Contents:
    rows = [{"task": name, **entry} for name, entry in datasets["tasks"].items()]
    return {"datasets": _rows(rows, ("task", "behaviour", "episodes", "transitions", "failed_episodes", "path"))}


def _describe_store(store: Mapping[str, Any]) -> Contents:
    columns = (
        "task", "behaviour", "episodes", "transitions", "terminated", "return_mean", "return_min", "return_max",
        "success_rate",
    )  # fmt: skip
    return {"data": _rows(store["tasks"], columns)}


def _describe_tasks(specs: Sequence[Mapping[str, Any]]) -> Contents:
    columns = ("name", "observation_dim", "action_dim", "action_kind", "episode_length", "discount", "terminates")
    return {"tasks": _rows(specs, columns)}


def _describe_policies(policies: Mapping[str, Any]) -> Contents:
    return {"policies": _rows(policies["policies"], ("algorithm", "task", "seed", "path"))}


def _describe_policy(policy: Mapping[str, Any]) -> Contents:
    """One policy, by its policy.json."""
    task = policy.get("task", {})
    sizes = {name: task.get(name) for name in ("observation_dim", "action_dim", "action_kind")}
    return {"kind": policy.get("kind"), "task": task.get("name"), **policy.get("trained_by", {}), **sizes}


def _describe_starts(starts: Mapping[str, Any]) -> Contents:
    return {"start frames": f"{starts['source']}, of {counted(len(starts['tasks']), 'task')}"}


def _describe_provenance(facts: Mapping[str, Any]) -> Contents:
    """What a published artifact says of its data and how well it did."""
    rows = [{**row, "open_loop_r2": facts["open_loop"].get(row["task"])} for row in facts["data"]]
    columns = ("task", "behaviour", "episodes", "transitions", "return_mean", "success_rate", "open_loop_r2")
    found: Contents = {"data digest": str(facts["data_digest"])[:12], "trained on": _rows(rows, columns)}
    return found | {"scores": facts["score_table"]} if facts["score_table"] else found


def _describe_scores(values: Any) -> Contents:
    """An evaluation, by its summary.json."""
    summary = decode(Summary, values)
    scores = [
        {
            "algorithm": name,
            "mean [95%]": one.text(),
            "IQM [95%]": one.text("iqm"),
            "tasks": one.tasks,
            "seeds": one.seeds,
            "failed_episodes": one.failed_episodes,
        }
        for name, one in summary.algorithms.items()
    ]
    overestimated = [f"{one.algorithm} on {one.task}" for one in summary.exploiting]
    notes = {"overestimated by the world model": overestimated, "not evaluated": summary.skipped}
    return {"protocol": summary.protocol, **{name: one for name, one in notes.items() if one}, "scores": scores}


_CONTENTS: Mapping[str, Callable[[Any], Contents]] = {
    "datasets.json": _describe_collected,
    "store.json": _describe_store,
    "tasks.json": _describe_tasks,
    "policies.json": _describe_policies,
    "policy.json": _describe_policy,
    "starts.json": _describe_starts,
    "provenance.json": _describe_provenance,
    SUMMARY_FILE: _describe_scores,
}
"""The files by which stages say what they made, and what each of them says."""


def _describe_dataset(reader: EpisodeReader) -> Contents:
    from ...datasets.validate import check_episode, time_limit_warnings

    task, columns = reader.task, reader.source.get("columns", ())
    refused: list[str] = []
    lengths, returns, success = [], [], []
    ended: Counter[tuple[int, bool]] = Counter()
    first: Episode | None = None
    for episode in reader:
        first = first or episode
        try:
            check_episode(episode, task, episode.label, columns)
        except DatasetError as error:
            refused.append(str(error))
        lengths.append(len(episode))
        returns.append(float(episode.rewards.sum(dtype=np.float64)))
        ended[len(episode), episode.terminated] += 1
        if episode.success is not None:
            success.append(bool(episode.success.any()))
    discrete = task.action_kind == "discrete"
    actions = counted(task.action_dim, "choice" if discrete else "number") + ("" if discrete else " in [-1, 1]")
    found: Contents = {
        "task": task.name,
        **reader.source,
        "behaviour": reader.behaviour,
        "observation": counted(task.observation_dim, "number"),
        "action": f"{task.action_kind}, {actions}",
        "episodes": len(lengths),
        "transitions": sum(lengths),
    }
    if lengths:
        found["length"] = _range(lengths)
        found["return"] = _range(returns)
        terminated = sum(number for (_, by_termination), number in ended.items() if by_termination)
        found["terminated"] = f"{terminated:,} of {len(lengths):,} episodes"
    if success:
        found["success"] = f"{np.mean(success):.1%} of episodes"
    if refused:
        refused = [f"pack refuses {len(refused):,} of the {len(lengths):,} episodes; the first: {refused[0]}"]
    for number, warning in enumerate([*refused, *reader.warnings, *time_limit_warnings(ended)], 1):
        found[f"warning {number}"] = warning
    return found | _describe_steps(first) if first else found


def _describe_steps(episode: Episode) -> Contents:
    """Which reward follows which action, in the first steps of an episode and its last."""
    steps = range(len(episode))
    rows = [
        {
            "step": step,
            "observation": _numbers(episode.observations[step]),
            "action": _numbers(episode.actions[step]),
            "reward": float(episode.rewards[step]),
            "next observation": _numbers(episode.observations[step + 1]),
        }
        for step in [*steps[:SHOWN_STEPS], *steps[SHOWN_STEPS:][-1:]]
    ]
    return {"steps of": f"{episode.label}, first and last", "steps": rows}


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.4g}" for value in values[:SHOWN_NUMBERS]) + (
        " ..." if len(values) > SHOWN_NUMBERS else ""
    )


def _describe_weights(paths: Sequence[Path]) -> Contents:
    from safetensors import safe_open

    rows = []
    for path in paths:
        with reading(path, StageError), safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                tensor = file.get_slice(name)
                shape, dtype = tensor.get_shape(), tensor.get_dtype()
                rows.append({"tensor": name, "shape": str(shape), "type": dtype, "count": math.prod(shape)})
    files = ", ".join(path.name for path in paths)
    total = f"{sum(row['count'] for row in rows):,} numbers in {len(rows)} tensors of {files}"
    return {"weights": total, "tensors": rows}


def _rows(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Some columns of the rows; those that no row has are left out."""
    rows = list(rows)
    present = [column for column in columns if any(column in row for row in rows)]
    return [{column: row.get(column) for column in present} for row in rows]


def _range(values: Sequence[float]) -> str:
    return f"mean {np.mean(values):.4g}, {min(values):.4g} to {max(values):.4g}"


def _bytes(manifest: Manifest) -> int:
    return sum(record.bytes for record in manifest.files.values())
