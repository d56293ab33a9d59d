"""What `orrery inspect PATH` prints: whatever the path is, what it holds, in one screen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...pipeline import artifact
from ...pipeline.artifact import Manifest
from ...pipeline.errors import DatasetError, StageError
from ...pipeline.logging import duration
from ...pipeline.reading import read_json, reading
from ...pipeline.run_folder import RUN_FILE, read_attempt
from ...pipeline.status import read_run_file, stage_rows
from ...pipeline.study.command import describe_study
from ...pipeline.study.study import is_study

if TYPE_CHECKING:
    from ...datasets.formats.reader import EpisodeReader
    from ...datasets.schema import Episode

SHOWN_FILES = 12
"""The largest files of an artifact; the others are counted."""
SHOWN_TENSORS = 60
SHOWN_STEPS = 3
SHOWN_NUMBERS = 4
"""Of an observation or action."""


def describe(path: Path) -> RenderableType:
    """Return what a run, a study, an artifact, a dataset or a file of weights holds.

    Args:
        path: the folder of a run, a study or an artifact, a .safetensors file, an HDF5 file, or the folder or id of a
            Minari dataset.
    Raises:
        StageError: it is none of these.
        DatasetError: it is a dataset that cannot be read.
    """
    if is_study(path):
        return describe_study(path)
    if (path / RUN_FILE).is_file():
        return _describe_run(path)
    if (path / artifact.MANIFEST).is_file():
        return _describe_artifact(path)
    if path.suffix == ".safetensors" and path.is_file():
        return _describe_weights([path])
    if path.is_dir() and (weights := sorted(path.glob("*.safetensors"))):
        policy = path / "policy.json"
        with reading(policy, StageError):
            facts = [_describe_policy(read_json(policy, StageError))] if policy.is_file() else []
        return Group(*facts, _describe_weights(weights))
    if (path.parent / RUN_FILE).is_file():
        return _describe_unfinished(path)
    from ...datasets.formats.sources import open_reader

    try:
        return _describe_dataset(open_reader(str(path)))
    except DatasetError as error:
        raise StageError(
            f"{error}\n`orrery inspect` knows a run folder, an artifact's folder (RUN/pack), a .safetensors file, an "
            "HDF5 file, and the folder or id of a Minari dataset"
        ) from error


def _describe_unfinished(path: Path) -> RenderableType:
    """A stage of a run that has no artifact, or a folder beside its stages."""
    run_dir, name = path.parent, path.name.partition(".")[0]
    for stage, status, seconds, result in stage_rows(run_dir):
        if stage == name:
            kept = " Its checkpoints are kept; the same command continues it." if read_attempt(run_dir / name) else ""
            text = f"stage {name} of the run in {run_dir} has no artifact: {status} {seconds} {result}".rstrip()
            return Text(f"{text}.{kept} See orrery status {run_dir} and {run_dir / 'log.txt'}")
    raise StageError(f"{path}: the run in {run_dir} has no stage {name!r}; orrery status {run_dir} lists its stages")


def _describe_run(folder: Path) -> RenderableType:
    record = read_run_file(folder)
    table = _table("stage", "status", "kind", "size", "time", "result")
    for name, status, seconds, result in stage_rows(folder):
        made = folder / name
        manifest = artifact.read_manifest(made) if made.is_dir() else None
        size = f"{_size(manifest)}" if manifest else ""
        kind = manifest.kind if manifest else ""
        table.add_row(name, status, kind, size, seconds, result)
    overrides = " ".join(record["overrides"])
    return Group(Text(f"run of {record['experiment']} {overrides}".rstrip()), table)


def _describe_artifact(folder: Path) -> RenderableType:
    manifest = artifact.read_manifest(folder)
    if manifest is None:
        raise StageError(f"{folder} has no {artifact.MANIFEST}")
    artifact.verify_quick(folder, manifest.kind)
    facts = _table("", "")
    facts.show_header = False
    facts.add_row("kind", manifest.kind)
    facts.add_row("made by", f"stage {manifest.stage}, {manifest.created}, in {duration(manifest.seconds)}")
    facts.add_row("result", Text(manifest.summary))
    for name, records in manifest.inputs.items():
        for record in records:
            facts.add_row(f"input {name}", Text(f"{record.path}  ({record.digest[:12]})"))
    facts.add_row("versions", ", ".join(f"{k} {v}" for k, v in manifest.versions.items() if k != artifact.SOURCE))
    parts: list[RenderableType] = [facts, Text("")]
    for file, show in _CONTENTS.items():
        if (folder / file).is_file():
            with reading(folder / file, StageError):
                parts += [show(read_json(folder / file, StageError)), Text("")]
    if weights := sorted(folder.glob("*.safetensors")):
        parts += [_describe_weights(weights), Text("")]
    return Group(*parts, _files(manifest))


def _describe_tasks(specs: Sequence[Mapping[str, Any]]) -> RenderableType:
    columns = ("name", "observation_dim", "action_dim", "action_kind", "episode_length", "discount", "terminates")
    return _rows_table(specs, columns)


def _describe_store(store: Mapping[str, Any]) -> RenderableType:
    columns = (
        "task", "behaviour", "episodes", "transitions", "terminated", "return_mean", "return_min", "return_max",
        "success_rate",
    )  # fmt: skip
    return _rows_table(store["tasks"], columns)


def _describe_collected(datasets: Mapping[str, Any]) -> RenderableType:
    rows = [{"task": name, **entry} for name, entry in datasets["tasks"].items()]
    return _rows_table(rows, ("task", "behaviour", "episodes", "transitions", "failed_episodes", "path"))


def _describe_policies(policies: Mapping[str, Any]) -> RenderableType:
    return _rows_table(policies["policies"], ("algorithm", "task", "seed", "path"))


def _describe_policy(policy: Mapping[str, Any]) -> RenderableType:
    """One policy, by its policy.json."""
    task, trained_by = policy.get("task", {}), policy.get("trained_by", {})
    row = {**trained_by, "kind": policy.get("kind"), "task": task.get("name")}
    columns = ("kind", "task", *trained_by)
    sizes = {name: task.get(name) for name in ("observation_dim", "action_dim", "action_kind")}
    return _rows_table([{**row, **sizes}], (*columns, *sizes))


def _describe_starts(starts: Mapping[str, Any]) -> RenderableType:
    rows = [{"start frames of": name, **entry} for name, entry in starts["tasks"].items()]
    return Group(Text(f"start frames: {starts['source']}"), _rows_table(rows, ("start frames of", "behaviour")))


def _describe_provenance(facts: Mapping[str, Any]) -> RenderableType:
    """What a published artifact says of its data and how well it did."""
    rows = [{**row, "open_loop_r2": facts["open_loop"].get(row["task"])} for row in facts["data"]]
    columns = ("task", "behaviour", "episodes", "transitions", "return_mean", "success_rate", "open_loop_r2")
    parts: list[RenderableType] = [
        Text(f"trained on data {str(facts['data_digest'])[:12]}"),
        _rows_table(rows, columns),
    ]
    return Group(*parts, Text(facts["score_table"])) if facts["score_table"] else Group(*parts)


def _describe_scores(summary: Mapping[str, Any]) -> RenderableType:
    """Key numbers of `summary.json`, whatever their nesting."""
    from ...pipeline.config.load import dotted_keys

    table = _table("number", "value")
    for key, value in dotted_keys(summary):
        table.add_row(key, _cell(value))
    return table


_CONTENTS: Mapping[str, Callable[[Any], RenderableType]] = {
    "datasets.json": _describe_collected,
    "store.json": _describe_store,
    "tasks.json": _describe_tasks,
    "policies.json": _describe_policies,
    "policy.json": _describe_policy,
    "starts.json": _describe_starts,
    "provenance.json": _describe_provenance,
    "summary.json": _describe_scores,
}
"""The files by which stages say what they made, and how each is shown."""


def _describe_dataset(reader: EpisodeReader) -> RenderableType:
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
    facts = _table("", "")
    facts.show_header = False
    facts.add_row("task", task.name)
    for name, value in reader.source.items():
        facts.add_row(name, Text(_cell(value)))
    facts.add_row("behaviour", reader.behaviour)
    facts.add_row("observation", f"{task.observation_dim} numbers")
    choices = "choices" if task.action_kind == "discrete" else "numbers in [-1, 1]"
    facts.add_row("action", f"{task.action_kind}, {task.action_dim} {choices}")
    facts.add_row("episodes", f"{len(lengths):,}")
    facts.add_row("transitions", f"{sum(lengths):,}")
    if lengths:
        facts.add_row("length", _range(lengths))
        facts.add_row("return", _range(returns))
        terminated = sum(number for (_, by_termination), number in ended.items() if by_termination)
        facts.add_row("terminated", f"{terminated:,} of {len(lengths):,} episodes")
    if success:
        facts.add_row("success", f"{np.mean(success):.1%} of episodes")
    if refused:
        refused = [f"pack refuses {len(refused):,} of the {len(lengths):,} episodes; the first: {refused[0]}"]
    for warning in [*refused, *reader.warnings, *time_limit_warnings(ended)]:
        facts.add_row("warning", Text(warning))
    return Group(facts, Text(""), _describe_steps(first)) if first else facts


def _describe_steps(episode: Episode) -> RenderableType:
    """Which reward follows which action, in the first steps of an episode and its last."""
    table = _table("step", "observation", "action", "reward", "next observation")
    steps = range(len(episode))
    for step in [*steps[:SHOWN_STEPS], *steps[SHOWN_STEPS:][-1:]]:
        table.add_row(
            f"{step}",
            _numbers(episode.observations[step]),
            _numbers(episode.actions[step]),
            f"{episode.rewards[step]:.4g}",
            _numbers(episode.observations[step + 1]),
        )
    return Group(Text(f"first and last steps of {episode.label}"), table)


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.4g}" for value in values[:SHOWN_NUMBERS]) + (
        " ..." if len(values) > SHOWN_NUMBERS else ""
    )


def _describe_weights(paths: Sequence[Path]) -> RenderableType:
    from safetensors import safe_open

    table = _table("tensor", "shape", "type", "count")
    counts = []
    for path in paths:
        with reading(path, StageError), safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                tensor = file.get_slice(name)
                counts.append(math.prod(tensor.get_shape()))
                if len(counts) <= SHOWN_TENSORS:
                    table.add_row(Text(name), str(tensor.get_shape()), tensor.get_dtype(), f"{counts[-1]:,}")
    more = f", the first {SHOWN_TENSORS} shown" if len(counts) > SHOWN_TENSORS else ""
    files = ", ".join(path.name for path in paths)
    return Group(table, Text(f"{sum(counts):,} numbers in {len(counts)} tensors of {files}{more}"))


def _files(manifest: Manifest) -> RenderableType:
    largest = sorted(manifest.files.items(), key=lambda item: -item[1].bytes)
    table = _table("file", "bytes")
    for path, record in largest[:SHOWN_FILES]:
        table.add_row(Text(path), f"{record.bytes:,}")
    if len(largest) > SHOWN_FILES:
        rest = sum(record.bytes for _, record in largest[SHOWN_FILES:])
        table.add_row(f"{len(largest) - SHOWN_FILES} more", f"{rest:,}")
    return table


def _rows_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    rows = list(rows)
    present = [column for column in columns if any(column in row for row in rows)]
    table = _table(*(column.replace("_", " ") for column in present))
    for row in rows:
        table.add_row(*(Text(_cell(row.get(column))) for column in present))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _range(values: Sequence[float]) -> str:
    return f"mean {np.mean(values):.4g}, {min(values):.4g} to {max(values):.4g}"


def _size(manifest: Manifest) -> str:
    return f"{sum(record.bytes for record in manifest.files.values()) / 2**20:,.1f} MiB"
