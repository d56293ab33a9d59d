"""Origin and results of an artifact, read from its manifest and from the other artifacts of its run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...pipeline.artifact import MANIFEST, SOURCE, Manifest, read_manifest
from ..policy.policy_index import POLICIES_FILE, PolicyIndex
from ..reporting.results import ReportData
from ..reporting.scoring import markdown_table, score_table

DATA_FIELDS = (
    "task", "behaviour", "episodes", "transitions", "return_mean", "return_min", "return_max", "success_rate"
)  # fmt: skip


@dataclass(frozen=True)
class Provenance:
    """Content of a model card. Stored as provenance.json."""

    kind: str
    tasks: Sequence[Mapping[str, Any]]
    """TaskSpecs, with the references of their scores."""
    data_digest: str | None
    """Hash of the store it was trained on."""
    data: Sequence[Mapping[str, Any]]
    """DATA_FIELDS by task; empty if the store was not available."""
    open_loop: Mapping[str, float | None] = field(default_factory=dict)
    """Open-loop R2 on held-out windows at the last validation, by task; None if unknown."""
    open_loop_of: str = ""
    """The predicted quantity, and the number of steps ahead."""
    score_table: str = ""
    """Markdown, as in the report."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """Evaluation protocol, as in summary.json."""
    references: Mapping[str, Any] = field(default_factory=dict)
    """References of normalised scores that the evaluation took from data."""
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    seconds: float = 0.0
    stage: str = ""
    summary: str = ""
    digest: str = ""
    """Digest of the published artifact."""


def trace(folder: Path, manifest: Manifest | None, tasks: Sequence[Mapping[str, Any]]) -> Provenance:
    """Collect the provenance of an artifact.

    Args:
        folder: the artifact, in its run folder if that is available.
        manifest: of the artifact; None for a folder that no stage wrote.
        tasks: its TaskSpecs.
    """
    if manifest is None:
        return _of_one_policy(folder, tasks)
    stores = list(manifest.inputs.get("store", ()))
    open_loop, what = _open_loop(folder)
    table, protocol, references = _scores(folder, manifest)
    return Provenance(
        kind=manifest.kind,
        tasks=tasks,
        data_digest=stores[0].digest if stores else None,
        data=[row for record in stores for row in _data(Path(record.path), record.digest)],
        open_loop=open_loop,
        open_loop_of=what,
        score_table=table,
        protocol=protocol,
        references=references,
        versions={name: one for name, one in manifest.versions.items() if name != SOURCE},
        created=manifest.created,
        seconds=manifest.seconds,
        stage=manifest.stage,
        summary=manifest.summary,
        digest=manifest.digest,
    )


def _of_one_policy(folder: Path, tasks: Sequence[Mapping[str, Any]]) -> Provenance:
    """What the artifact says that a policy's folder lies in, as far as it concerns that policy; nothing without one."""
    for parent in list(folder.resolve().parents)[:3]:
        path = folder.resolve().relative_to(parent).as_posix()
        if not (parent / POLICIES_FILE).is_file() or (manifest := read_manifest(parent)) is None:
            continue
        entry = next((one for one in PolicyIndex.read(parent).entries if one["path"] == path), None)
        if entry is None:
            break
        facts = trace(parent, manifest, tasks)
        names = {task["name"] for task in tasks}
        return replace(
            facts,
            data=[row for row in facts.data if row["task"] in names],
            # The table judges all seeds of all tasks; this is one of them.
            score_table=_rows_of(facts.score_table, names),
            summary=f"algorithm {entry['algorithm']} with seed {entry['seed']}, one of: {manifest.summary}",
        )
    return Provenance("", tasks, None, [])


def _rows_of(table: str, tasks: set[str]) -> str:
    """The head of a score table and the rows of these tasks."""
    lines = table.splitlines(keepends=True)
    return "".join(lines[:2] + [line for line in lines[2:] if line.split("|")[1].strip() in tasks])


def _data(store: Path, digest: str) -> Iterator[dict[str, Any]]:
    """What a store says of its tasks, if it still is the one that was read."""
    if not (store / MANIFEST).is_file() or getattr(read_manifest(store), "digest", "") != digest:
        return
    for task in ReportData({"store": [store]}).data:
        yield {name: getattr(task, name) for name in DATA_FIELDS}


def _open_loop(model: Path) -> tuple[dict[str, float | None], str]:
    last = ReportData({"world_model": [model]}).last_validation
    column = "observation_r2" if "observation_r2" in last else "reward_r2"
    if last.empty:
        return {}, ""
    last = last[last.horizon == last.horizon.max()]
    found = {
        str(task): None if math.isnan(value) else round(float(value), 3)
        for task, value in zip(last["task"], last[column], strict=True)
    }
    what = (
        f"{column.removesuffix('_r2')} after {int(last.horizon.iloc[0])} steps, training step {int(last.step.iloc[0])}"
    )
    return found, what


def _scores(folder: Path, manifest: Manifest) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    """The evaluation, in the same run, of these policies or of policies from this model."""
    beside = {
        path.parent: found
        for path in sorted(folder.resolve().parent.glob(f"*/{MANIFEST}"))
        if (found := read_manifest(path.parent)) is not None
    }
    policies = {
        found.digest
        for found in beside.values()
        if found.kind == "policies" and _was_read(manifest, found, "world_model")
    }
    for place, found in beside.items():
        judged = {record.digest for record in found.inputs.get("policies", ())}
        # A model's scores are those of policies from it alone; beside a policy's there may be others to compare with.
        own = judged <= policies if manifest.kind == "world_model" else manifest.digest in judged
        if found.kind != "scores" or not judged or not own:
            continue
        data = ReportData({"scores": [place]})
        table = score_table(data)
        return markdown_table(table) if table else "", data.summary.protocol, data.summary.references
    return "", {}, {}


def _was_read(maker: Manifest, reader: Manifest, name: str) -> bool:
    return any(record.digest == maker.digest for record in reader.inputs.get(name, ()))
