"""Reads what the stages of a run published into one value, so that tables and figures never open a file.

Whatever is not there is empty or None. A file that is there but lacks a column is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ...pipeline import reading
from ...pipeline.artifact import read_manifest
from ..evaluation.config import BASELINES
from ..finetune.config import ADDED, FORGETTING

SCORE_COLUMNS = ("algorithm", "task", "seed", "episodes", "return_mean", "return_std", "success_rate", "score")
FORGETTING_COLUMNS = ("reward_r2_before", "reward_r2_after")
GRADIENT_COLUMNS = ("horizon", "norm", "return_norm", "r2", "cosine")
CURVE_COLUMNS = ("iteration", "algorithm", "task", "seed")


@dataclass(frozen=True)
class _Named:
    """A TaskSpec."""

    name: str


@dataclass(frozen=True)
class _Policy:
    algorithm: str
    task: str


@dataclass(frozen=True)
class Policies:
    """policies.json."""

    tasks: list[_Named] = field(default_factory=list)
    policies: list[_Policy] = field(default_factory=list)


@dataclass(frozen=True)
class _Data:
    task: str
    behaviour: str
    episodes: int
    transitions: int
    return_mean: float
    return_std: float
    return_max: float
    success_rate: float | None
    source: dict[str, Any] = field(default_factory=dict)
    findings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Store:
    """store.json."""

    tasks: list[_Data]


@dataclass(frozen=True)
class _ByTask:
    """datasets.json, and what finetuning added."""

    tasks: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class _Estimate:
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class _Aggregate:
    mean: _Estimate
    iqm: _Estimate
    seeds: int
    tasks: int = 0
    of_tasks: int = 0
    failed_episodes: int = 0
    returns: dict[str, float] = field(default_factory=dict)
    unscored: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Failure:
    algorithm: str
    task: str
    error: str


@dataclass(frozen=True)
class _Imagined:
    algorithm: str
    task: str
    imagined_return: float | None
    real_return: float | None


@dataclass(frozen=True)
class Summary:
    """summary.json."""

    algorithms: dict[str, _Aggregate] = field(default_factory=dict)
    by_suite: dict[str, dict[str, _Aggregate]] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    references: dict[str, dict[str, Any]] = field(default_factory=dict)
    imagined: list[_Imagined] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failures: list[_Failure] = field(default_factory=list)


@dataclass(frozen=True)
class Evidence:
    """Everything that the report shows."""

    tasks: Sequence[str]
    """In the order of the task table; tasks that only scores name come last."""
    specs: Mapping[str, Mapping[str, Any]]
    """TaskSpec fields by task."""
    data: Sequence[Mapping[str, Any]]
    """Per task of the store, as in store.json."""
    collected: Mapping[str, Mapping[str, Any]]
    """Per task of the collected datasets, as in datasets.json."""
    training: pd.DataFrame | None
    """World model: step, train/<loss>..."""
    validation: pd.DataFrame | None
    """World model: step, task, horizon, reward_r2, latent_mse."""
    forgetting: pd.DataFrame | None
    """World model that was finetuned: task, new, horizon, reward_r2_before, reward_r2_after, latent_mse_before, ..."""
    added: Mapping[str, Mapping[str, Any]]
    """How its new tasks began: rule, nearest, scaling, errors."""
    model_gradients: pd.DataFrame | None
    """Through the world model: task, horizon, norm, return_norm, r2, cosine."""
    policies: Sequence[Mapping[str, Any]]
    """Entries of every policies.json."""
    extraction: pd.DataFrame | None
    """Policies that imagine: iteration, algorithm, task, seed, imagined_reward."""
    scores: pd.DataFrame | None
    """algorithm, task, seed, episodes, return_mean, return_std, success_rate, score."""
    summary: Mapping[str, Any]
    """summary.json of the evaluation."""
    config: Mapping[str, Any]
    """Every key of the run with its final value."""
    records: Mapping[str, Mapping[str, Any]]
    """Manifests by stage, earliest first; artifacts from outside the run by `input: folder`."""
    given: frozenset[str] = frozenset()
    """Names of the inputs that are there."""
    empty: frozenset[str] = frozenset()
    """Tables of the world model that are there and have no row."""

    @property
    def predicts_no_reward(self) -> bool:
        """Whether the world model is one of observations alone."""
        validation = self.validation
        return validation is not None and "observation_r2" in validation and validation["reward_r2"].isna().all()

    @property
    def algorithms(self) -> list[str]:
        """Learned algorithms in the order of their policies, then the baselines."""
        named = [entry["algorithm"] for entry in self.policies]
        if self.scores is not None:
            named += self.scores["algorithm"].tolist()
        learned = [name for name in dict.fromkeys(named) if name not in BASELINES]
        return learned + [name for name in BASELINES if name in named]


def read_evidence(inputs: Mapping[str, Sequence[Path]], run: Any) -> Evidence:
    """Read the artifacts given to the report.

    Args:
        inputs: artifact folders by input name; any may be absent or empty.
        run: the `run` of a stage's Context, or None.
    Raises:
        StageError: a file is damaged, or lacks columns.
    """
    indices = [read_json(folder / "policies.json", Policies) for folder in inputs.get("policies", ())]
    tables = [_tasks(folder) for name in ("store", "world_model") for folder in inputs.get(name, ())]
    tables += [index.get("tasks", []) for index in indices]
    specs = {spec["name"]: spec for table in reversed(tables) for spec in table}
    scores = _table(inputs, "scores", "scores.csv", SCORE_COLUMNS)
    summary = _first(inputs, "scores", "summary.json", Summary)
    evaluated = [] if scores is None else scores["task"].tolist()
    tasks = [spec["name"] for table in tables for spec in table] + evaluated + list(summary.get("skipped", {}))
    logged = [read_csv(folder / "training.csv", CURVE_COLUMNS) for folder in inputs.get("policies", ())]
    imagines = [frame for frame in logged if frame is not None and "imagined_reward" in frame]
    curves = [frame for frame in (one.dropna(subset="imagined_reward") for one in imagines) if not frame.empty]
    records = {} if run is None else dict(run.stage_records)
    return Evidence(
        tasks=list(dict.fromkeys(tasks)),
        specs=specs,
        data=_first(inputs, "store", "store.json", _Store).get("tasks", []),
        collected=_first(inputs, "datasets", "datasets.json", _ByTask).get("tasks", {}),
        training=_table(inputs, "world_model", "training.csv", ["step"]),
        validation=_table(inputs, "world_model", "validation.csv", ["step", "task", "horizon", "reward_r2"]),
        forgetting=_table(inputs, "world_model", FORGETTING, ["task", "new", "horizon", *FORGETTING_COLUMNS]),
        added=_first(inputs, "world_model", ADDED, _ByTask).get("tasks", {}),
        model_gradients=_table(inputs, "gradients", "gradients.csv", ["task", *GRADIENT_COLUMNS]),
        policies=[entry for index in indices for entry in index.get("policies", [])],
        extraction=pd.concat(curves, ignore_index=True) if curves else None,
        scores=scores,
        summary=summary,
        config={} if run is None else run.config,
        records=_outside(inputs, records) | records,
        given=frozenset(name for name, folders in inputs.items() if folders),
        empty=frozenset(
            file
            for folder in list(inputs.get("world_model", ()))[:1]
            for file in ("training.csv", "validation.csv")
            if (folder / file).is_file() and reading.read_csv(folder / file).empty
        ),
    )


def _outside(inputs: Mapping[str, Sequence[Path]], records: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Manifests of inputs that no stage of this run made."""
    own = {record["digest"] for record in records.values()}
    found = {}
    for name, folders in inputs.items():
        for folder in folders:
            manifest = read_manifest(folder)
            if manifest is not None and manifest.digest not in own:
                found[f"{name}: {folder}"] = asdict(manifest)
    return found


def _tasks(folder: Path) -> list[dict[str, Any]]:
    path = folder / "tasks.json"
    return reading.read_made(path, list[_Named]) if path.is_file() else []


def _first(inputs: Mapping[str, Sequence[Path]], name: str, file: str, kind: type) -> dict[str, Any]:
    return next((read_json(folder / file, kind) for folder in inputs.get(name, ())), {})


def read_json(path: Path, kind: type) -> dict[str, Any]:
    """What is in a JSON file, which can be decoded as `kind`; empty if there is no such file."""
    return reading.read_made(path, kind) if path.is_file() else {}


def _table(inputs: Mapping[str, Sequence[Path]], name: str, file: str, columns: Sequence[str]) -> pd.DataFrame | None:
    return next((read_csv(folder / file, columns) for folder in inputs.get(name, ())), None)


def read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame | None:
    """The table in `path`; None if there is no such file or no row in it."""
    if not path.is_file():
        return None
    frame = reading.read_csv(path, columns)
    return None if frame.empty else frame
